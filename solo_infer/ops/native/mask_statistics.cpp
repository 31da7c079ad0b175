// Areas, sums of scores and packed pixels of masks. Declared again in mask_statistics.py.

#include <cstdint>

#include "packing.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct Masks {
    const float *scores;  // (count, pixels)
    float *areas, *sums;  // (count)
    uint8_t *packed;      // (count, ceil(pixels / 8))
    int64_t count, pixels;
    float threshold;
};

constexpr int64_t kSummedPixels = 2048;  // whose scores are summed up in float32

void add_mask(const Masks &masks, int64_t mask) {
    const float *scores = masks.scores + mask * masks.pixels;
    uint8_t *packed = masks.packed + mask * ((masks.pixels + 7) / 8);
    int64_t area = 0;
    double sum = 0;
    for (int64_t first = 0; first < masks.pixels; first += kSummedPixels) {
        const int64_t last = smaller(first + kSummedPixels, masks.pixels);
        Vector sums = {};
        for (int64_t pixel = first; pixel < last; pixel += kLanes) {
            const int64_t count = smaller(last - pixel, kLanes);
            const Vector values = load(scores + pixel, count);
            const uint32_t bits = lanes_above(values, masks.threshold) & ((uint32_t(1) << count) - 1);
            if (bits) sums += values > masks.threshold ? values : Vector{};
            area += __builtin_popcount(bits);
            pack_lanes(bits, packed + pixel / 8, (count + 7) / 8);
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    }
    masks.areas[mask] = float(area);
    masks.sums[mask] = float(sum);
}

}  // namespace

extern "C" void add_masks(const Masks *masks, uint32_t threads, Parallel parallel) {
    run_in_threads(masks->count, 1, threads, parallel, [&](int64_t mask, int64_t, int64_t) { add_mask(*masks, mask); });
}
