// Common pixels of packed masks of equal label. Declared again in mask_intersections.py.

#include <cstdint>
#include <cstring>

#include "threads.h"

namespace {

struct Masks {
    const uint8_t *packed;  // (count, bytes)
    const int64_t *labels;  // (count)
    float *intersections;   // (count, count), zeros
    int64_t count, bytes;
};

// The bytes from the first to the last one with a pixel.
struct Extent {
    int64_t first, end;
};

Extent extent_of(const uint8_t *packed, int64_t bytes) {
    Extent extent{0, bytes};
    while (extent.first < bytes && packed[extent.first] == 0) ++extent.first;
    while (extent.end > extent.first && packed[extent.end - 1] == 0) --extent.end;
    return extent;
}

uint64_t load_word(const uint8_t *bytes, int64_t count) {
    uint64_t word = 0;
    std::memcpy(&word, bytes, count);
    return word;
}

int64_t count_common(const uint8_t *a, const uint8_t *b, Extent extent) {
    int64_t sum = 0, byte = extent.first;
    for (; byte + 8 <= extent.end; byte += 8) {
        sum += __builtin_popcountll(load_word(a + byte, 8) & load_word(b + byte, 8));
    }
    if (byte < extent.end) {
        const int64_t rest = extent.end - byte;
        sum += __builtin_popcountll(load_word(a + byte, rest) & load_word(b + byte, rest));
    }
    return sum;
}

}  // namespace

extern "C" {

// Memory: two int64 for each mask.
void count_intersections(const Masks *masks, Extent *extents, uint32_t threads, Parallel parallel) {
    const int64_t count = masks->count, bytes = masks->bytes;
    run_in_threads(count, 1, threads, parallel, [&](int64_t mask, int64_t, int64_t) {
        extents[mask] = extent_of(masks->packed + mask * bytes, bytes);
    });
    run_in_threads(count, 1, threads, parallel, [&](int64_t row, int64_t, int64_t) {
        const uint8_t *packed = masks->packed + row * bytes;
        for (int64_t column = row; column < count; ++column) {
            if (masks->labels[column] != masks->labels[row]) continue;
            const Extent a = extents[row], b = extents[column];
            const Extent common{a.first > b.first ? a.first : b.first, a.end < b.end ? a.end : b.end};
            const float pixels = float(count_common(packed, masks->packed + column * bytes, common));
            masks->intersections[row * count + column] = masks->intersections[column * count + row] = pixels;
        }
    });
}
}
