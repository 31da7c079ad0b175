// Soft masks, resized along rows and columns, thresholded and packed. Declared again in paste_masks.py.

#include <immintrin.h>

#include <cstdint>

#include "threads.h"
#include "vectors.h"

namespace {

// A linear resize along one side: output i is the sum of weights[t][i] * input[first[i] + t] over the taps t.
struct Side {
    const int32_t *first;  // (step), ascending up to the number of outputs
    const float *weights;  // (taps, step), 0 beyond the number of outputs
    int64_t inputs, outputs, taps, step;  // step: outputs, rounded up to a multiple of kLanes
};

struct Masks {
    const float *soft;  // (count, rows.inputs, columns.inputs)
    uint8_t *packed;    // (count, rows.outputs, ceil(columns.outputs / 8)), zeros
    float *boxes;       // (count, 4) x1 y1 x2 y2, zeros
    Side rows, columns;
    int64_t count;
    float threshold;
};

struct Range {
    int64_t first, last;

    bool is_empty() const { return first > last; }
    void extend(int64_t low, int64_t high) { first = smaller(first, low), last = last < high ? high : last; }
};

typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

// The values at some indices in a vector, below kLanes.
INLINE Vector permute(Vector values, IntVector index) {
#ifdef __AVX512F__
    // GCC 12 warns of _mm512_permutexvar_ps itself.
    return Vector(_mm512_maskz_permutexvar_ps(0xFFFF, __m512i(index), __m512(values)));
#else
    return Vector(_mm256_permutevar8x32_ps(__m256(values), __m256i(index)));
#endif
}

struct ReversedBytes {
    uint8_t of[256];
};
constexpr ReversedBytes reverse_bytes() {
    ReversedBytes bytes{};
    for (int value = 0; value < 256; ++value) {
        for (int bit = 0; bit < 8; ++bit) bytes.of[value] |= (value >> bit & 1) << (7 - bit);
    }
    return bytes;
}
constexpr ReversedBytes kReversed = reverse_bytes();

// The rows and columns of the inputs above the threshold. Outputs without one of them are not above it.
void find_inputs_above(const float *soft, const Masks &masks, Range *rows, Range *columns) {
    const int64_t width = masks.columns.inputs;
    *rows = {masks.rows.inputs, -1}, *columns = {width, -1};
    for (int64_t y = 0; y < masks.rows.inputs; ++y) {
        for (int64_t x = 0; x < width; x += kLanes) {
            const uint32_t bits = lanes_above(load(soft + y * width + x, width - x), masks.threshold);
            if (bits == 0) continue;
            rows->extend(y, y);
            columns->extend(x + __builtin_ctz(bits), x + 31 - __builtin_clz(bits));
        }
    }
}

// The outputs that depend on a range of inputs.
Range outputs_of(const Side &side, Range inputs) {
    Range outputs{0, side.outputs - 1};
    while (!outputs.is_empty() && side.first[outputs.first] + side.taps <= inputs.first) ++outputs.first;
    while (!outputs.is_empty() && side.first[outputs.last] > inputs.last) --outputs.last;
    return outputs;
}

// Vectors of outputs from first on, to the one with the last one.
void resize_row(const float *source, const Masks &masks, Range outputs, float *resized) {
    const Side &side = masks.columns;
    for (int64_t x = outputs.first; x <= outputs.last; x += kLanes) {
        const IntVector index = *reinterpret_cast<const IntVector *>(side.first + x) - side.first[x];
        const int64_t last = smaller(x + kLanes, side.outputs) - 1;
        Vector sum = {};
        if (side.first[last] + side.taps - side.first[x] <= kLanes) {
            const Vector inputs = load(source + side.first[x], side.inputs - side.first[x]);
            for (int64_t tap = 0; tap < side.taps; ++tap) {
                sum += load(side.weights + tap * side.step + x) * permute(inputs, index + int32_t(tap));
            }
        } else {
            for (int64_t i = 0; i <= last - x; ++i) {
                const float *inputs = source + side.first[x + i];
                for (int64_t tap = 0; tap < side.taps; ++tap) {
                    sum[i] += side.weights[tap * side.step + x + i] * inputs[tap];
                }
            }
        }
        store(resized + x, sum);
    }
}

// Writes the pixels of one row; returns whether any is above the threshold.
bool write_row(const float *resized, const Masks &masks, int64_t y, Range columns, uint8_t *packed, uint8_t *any) {
    const Side &rows = masks.rows;
    const int64_t bytes = (masks.columns.outputs + 7) / 8;
    bool is_above = false;
    for (int64_t x = columns.first; x <= columns.last; x += kLanes) {
        Vector sum = {};
        for (int64_t tap = 0; tap < rows.taps; ++tap) {
            const int64_t slot = (rows.first[y] + tap) % rows.taps;
            sum += rows.weights[tap * rows.step + y] * load(resized + slot * masks.columns.step + x);
        }
        uint32_t bits = lanes_above(sum, masks.threshold);
        if (bits == 0) continue;
        is_above = true;
        for (int64_t byte = x / 8; byte < smaller((x + kLanes) / 8, bytes); ++byte, bits >>= 8) {
            packed[y * bytes + byte] = kReversed.of[bits & 0xFF];
            any[byte] |= bits & 0xFF;
        }
    }
    return is_above;
}

// Memory: rows.taps rows of columns.step values, and as many bytes.
void paste_mask(const Masks &masks, int64_t mask, float *memory) {
    const int64_t bytes = (masks.columns.outputs + 7) / 8;
    const float *soft = masks.soft + mask * masks.rows.inputs * masks.columns.inputs;
    uint8_t *packed = masks.packed + mask * masks.rows.outputs * bytes;
    uint8_t *any = reinterpret_cast<uint8_t *>(memory + masks.rows.taps * masks.columns.step);
    Range rows, columns;
    find_inputs_above(soft, masks, &rows, &columns);
    rows = outputs_of(masks.rows, rows), columns = outputs_of(masks.columns, columns);
    if (rows.is_empty() || columns.is_empty()) return;
    columns.first -= columns.first % kLanes;
    std::memset(any, 0, bytes);
    Range filled{masks.rows.outputs, -1};
    int64_t next = masks.rows.first[rows.first];  // input row to be resized
    for (int64_t y = rows.first; y <= rows.last; ++y) {
        for (; next < masks.rows.first[y] + masks.rows.taps; ++next) {
            float *resized = memory + next % masks.rows.taps * masks.columns.step;
            resize_row(soft + next * masks.columns.inputs, masks, columns, resized);
        }
        if (write_row(memory, masks, y, columns, packed, any)) filled.extend(y, y);
    }
    if (filled.is_empty()) return;
    Range bytes_filled{0, bytes - 1};
    while (any[bytes_filled.first] == 0) ++bytes_filled.first;
    while (any[bytes_filled.last] == 0) --bytes_filled.last;
    float *box = masks.boxes + 4 * mask;
    box[0] = float(8 * bytes_filled.first + __builtin_ctz(any[bytes_filled.first]));
    box[1] = float(filled.first);
    box[2] = float(8 * bytes_filled.last + 32 - __builtin_clz(any[bytes_filled.last]));
    box[3] = float(filled.last + 1);
}

}  // namespace

extern "C" {

// Each thread uses a part of the memory.
void paste_masks(const Masks *masks, float *memory, int64_t memory_step, uint32_t threads, Parallel parallel) {
    run_in_threads(masks->count, 1, threads, parallel, [&](int64_t first, int64_t last, int64_t thread) {
        for (int64_t mask = first; mask < last; ++mask) paste_mask(*masks, mask, memory + thread * memory_step);
    });
}
}
