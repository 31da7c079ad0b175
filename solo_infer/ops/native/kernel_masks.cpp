// Statistics of masks whose logits are products of mask features and kernels. Declared again in kernel_masks.py.
//
// The logits of a few pixels stay in the first-level cache until their scores are summed up and packed.

#include <cstdint>

#include "sigmoid.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct KernelMasks {
    const float *features;  // (pixels, channels)
    const float *kernels;   // (panels, channels, kBlockColumns)
    float *areas, *sums;    // (tasks, panels * kBlockColumns)
    uint8_t *packed;        // (masks, ceil(pixels / 8)), zeros
    int64_t pixels, channels, masks, task_pixels;
    float threshold, least_logit;  // no logit up to this has a score above the threshold
};

constexpr int64_t kChunk = 4 * kBlockRows;  // pixels, a multiple of 8

// Adds eight pixels of a vector of masks, and packs them. Pixels below count are there.
INLINE IntVector add_pixels(const KernelMasks &masks, const float *logits, int64_t count, Vector *area, Vector *sum) {
    IntVector bits = {};
    Vector highest = load(logits);
    for (int64_t i = 1; i < count; ++i) {
        const Vector logit = load(logits + i * kBlockColumns);
        highest = logit > highest ? logit : highest;
    }
    if (lanes_above(highest, masks.least_logit) == 0) return bits;
    for (int64_t i = 0; i < count; ++i) {
        const Vector score = sigmoid(load(logits + i * kBlockColumns));
        const IntVector is_inside = score > masks.threshold;
        *sum += is_inside ? score : Vector{};
        *area += is_inside ? Vector{} + 1 : Vector{};
        bits |= is_inside & (0x80 >> i);
    }
    return bits;
}

// Adds pixels [first, last), at most kChunk, of the masks of a panel.
void add_chunk(const KernelMasks &masks, int64_t panel, int64_t first, int64_t last, float *areas, float *sums) {
    float logits[kChunk * kBlockColumns];
    multiply_panel({masks.features + first * masks.channels, masks.channels},
                   masks.kernels + panel * masks.channels * kBlockColumns, last - first, masks.channels,
                   {logits, kBlockColumns});
    const int64_t bytes = (masks.pixels + 7) / 8;
    for (int64_t v = 0; v < kBlockVectors; ++v) {
        const int64_t mask = panel * kBlockColumns + v * kLanes;
        Vector area = load(areas + mask), sum = load(sums + mask);
        for (int64_t pixel = first; pixel < last; pixel += 8) {
            const float *values = logits + (pixel - first) * kBlockColumns + v * kLanes;
            const IntVector bits = add_pixels(masks, values, smaller(last - pixel, 8), &area, &sum);
            uint8_t *packed = masks.packed + mask * bytes + pixel / 8;
            for (int64_t lane = 0; lane < smaller(masks.masks - mask, kLanes); ++lane) {
                if (bits[lane]) packed[lane * bytes] = uint8_t(bits[lane]);
            }
        }
        store(areas + mask, area);
        store(sums + mask, sum);
    }
}

}  // namespace

extern "C" {

void add_kernel_masks(const KernelMasks *masks, uint32_t threads, Parallel parallel) {
    const int64_t panels = (masks->masks + kBlockColumns - 1) / kBlockColumns, width = panels * kBlockColumns;
    run_in_threads(masks->pixels, masks->task_pixels, threads, parallel, [&](int64_t start, int64_t end, int64_t) {
        float *areas = masks->areas + start / masks->task_pixels * width;
        float *sums = masks->sums + start / masks->task_pixels * width;
        for (int64_t first = start; first < end; first += kChunk) {
            for (int64_t panel = 0; panel < panels; ++panel) {
                add_chunk(*masks, panel, first, smaller(first + kChunk, end), areas, sums);
            }
        }
    });
}
}
