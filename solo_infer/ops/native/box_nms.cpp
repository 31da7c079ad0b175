// Greedy NMS of boxes. Declared again in box_nms.py.

#include <cstdint>

#include "vectors.h"

namespace {

// A value that is rounded, not a part of a fused multiplication and addition.
INLINE Vector rounded(Vector value) {
    asm("" : "+v"(value));
    return value;
}

INLINE Vector fill(float value) { return Vector{} + value; }
INLINE Vector greatest(Vector a, Vector b) { return a > b ? a : b; }
INLINE Vector least(Vector a, Vector b) { return a < b ? a : b; }

// Boxes x1 y1 x2 y2 that are kept, one array for each side.
struct KeptBoxes {
    float *left, *top, *right, *bottom, *areas;
    int64_t count;

    bool overlap(const float *box, float area, float threshold) const {
        const Vector x1 = fill(box[0]), y1 = fill(box[1]), x2 = fill(box[2]), y2 = fill(box[3]);
        for (int64_t first = 0; first < count; first += kLanes) {
            const Vector width = greatest(least(load(right + first), x2) - greatest(load(left + first), x1), Vector{});
            const Vector height = greatest(least(load(bottom + first), y2) - greatest(load(top + first), y1), Vector{});
            const Vector common = rounded(width * height);
            const Vector overlaps = common / (load(areas + first) + area - common);
            const uint32_t lanes = (uint32_t(1) << smaller(count - first, kLanes)) - 1;
            if (lanes_above(overlaps, threshold) & lanes) return true;
        }
        return false;
    }

    void add(const float *box, float area) {
        left[count] = box[0];
        top[count] = box[1];
        right[count] = box[2];
        bottom[count] = box[3];
        areas[count] = area;
        ++count;
    }
};

}  // namespace

// Writes the indices of the boxes (count, 4), the best first, that overlap no kept one before them by more than the
// threshold. The memory has 5 * (count + kBlockColumns) values. Returns their number.
extern "C" int64_t keep_boxes(const float *boxes, int64_t count, float threshold, float *memory, int64_t *indices) {
    const int64_t step = count + kBlockColumns;
    KeptBoxes kept{memory, memory + step, memory + 2 * step, memory + 3 * step, memory + 4 * step, 0};
    for (int64_t index = 0; index < count; ++index) {
        const float *box = boxes + 4 * index;
        const float area = rounded(fill(box[2] - box[0]) * fill(box[3] - box[1]))[0];
        if (kept.overlap(box, area, threshold)) continue;
        indices[kept.count] = index;
        kept.add(box, area);
    }
    return kept.count;
}
