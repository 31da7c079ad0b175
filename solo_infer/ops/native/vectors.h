// Vectors of float32 as wide as those of the CPU, and products of small blocks of matrices in its registers.

#ifndef SOLO_INFER_VECTORS_H
#define SOLO_INFER_VECTORS_H

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#define INLINE inline __attribute__((always_inline))

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16, kBlockRows = 14;
#else
constexpr int kLanes = 8, kBlockRows = 6;
#endif
// A block of kBlockRows x kBlockVectors vectors takes all registers but those of its factors.
constexpr int kBlockVectors = 2, kBlockColumns = kBlockVectors * kLanes;
// Products that are summed up in registers: few enough for the first-level cache, and for small rounding errors.
constexpr int64_t kBlockDepth = 128;
constexpr int64_t kCacheLine = 16;  // float32 values

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

// Calls function(0) to function(Count - 1) with indices that are constants.
template <typename Function, int... Index>
INLINE void unroll(Function function, std::integer_sequence<int, Index...>) {
    (function(std::integral_constant<int, Index>{}), ...);
}
template <int Count, typename Function>
INLINE void unroll(Function function) {
    unroll(function, std::make_integer_sequence<int, Count>{});
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t round_up(int64_t value, int64_t factor) { return (value + factor - 1) / factor * factor; }

INLINE Vector load(const float *source) { return *reinterpret_cast<const Vector *>(source); }
INLINE void store(float *target, Vector vector) { *reinterpret_cast<Vector *>(target) = vector; }

// The same for the first ``count`` values only, if these are fewer than a vector has.
INLINE Vector load(const float *source, int64_t count) {
    if (count >= kLanes) return load(source);
    Vector vector = {};
    std::memcpy(&vector, source, count * sizeof(float));
    return vector;
}
INLINE void store(float *target, Vector vector, int64_t count) {
    if (count >= kLanes) return store(target, vector);
    std::memcpy(target, &vector, count * sizeof(float));
}

// The upper half of a float32.
struct Bfloat16 {
    uint16_t bits;
};
typedef uint16_t HalfVector __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef uint32_t BitVector __attribute__((vector_size(kLanes * sizeof(uint32_t))));

INLINE Vector load(const Bfloat16 *source, int64_t count) {
    HalfVector halves = {};
    if (count >= kLanes) {
        std::memcpy(&halves, source, sizeof(halves));
    } else {
        std::memcpy(&halves, source, count * sizeof(Bfloat16));
    }
    const BitVector bits = __builtin_convertvector(halves, BitVector) << 16;
    Vector vector;
    std::memcpy(&vector, &bits, sizeof(vector));
    return vector;
}
INLINE float to_float(float value) { return value; }
INLINE float to_float(Bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}
// Rounds to the nearest value, ties to even. NaN stays NaN.
INLINE HalfVector round_to_bfloat16(Vector vector) {
    BitVector bits;
    std::memcpy(&bits, &vector, sizeof(bits));
    const BitVector is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    const BitVector rounded = bits + 0x7FFF + (bits >> 16 & 1);
    return __builtin_convertvector((is_nan ? bits | 0x400000 : rounded) >> 16, HalfVector);
}
INLINE void store(Bfloat16 *target, Vector vector, int64_t count) {
    const HalfVector halves = round_to_bfloat16(vector);
    if (count >= kLanes) {
        std::memcpy(target, &halves, sizeof(halves));
    } else {
        std::memcpy(target, &halves, count * sizeof(Bfloat16));
    }
}

// Writes to memory without reading it into the caches first. The target is aligned to the size of what is written.
INLINE void stream(float *target, Vector vector) {
#ifdef __AVX512F__
    _mm512_stream_ps(target, __m512(vector));
#else
    _mm256_stream_ps(target, __m256(vector));
#endif
}
INLINE void stream(Bfloat16 *target, Vector vector) {
    const HalfVector halves = round_to_bfloat16(vector);
#ifdef __AVX512F__
    _mm256_stream_si256(reinterpret_cast<__m256i *>(target), __m256i(halves));
#else
    _mm_stream_si128(reinterpret_cast<__m128i *>(target), __m128i(halves));
#endif
}
// Lets other threads read what this one has streamed.
INLINE void end_streams() { _mm_sfence(); }

INLINE Vector activate(Vector value, float negative_slope) {
    if (negative_slope == 1) return value;
    return value < 0 ? (negative_slope == 0 ? Vector{} : negative_slope * value) : value;
}

// Bit i is whether lane i is above the threshold.
INLINE uint32_t lanes_above(Vector values, float threshold) {
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask(__m512(values), _mm512_set1_ps(threshold), _CMP_GT_OQ);
#else
    return _mm256_movemask_ps(_mm256_cmp_ps(__m256(values), _mm256_set1_ps(threshold), _CMP_GT_OQ));
#endif
}

// Rows of a matrix, ``step`` values apart.
template <typename Value>
struct Rows {
    Value *first;
    int64_t step;

    Rows at(int64_t row, int64_t column) const { return {first + row * step + column, step}; }
};

// products (Count, kBlockColumns) = or += values (Count, depth) x weight (depth, kBlockColumns)
template <int Count>
void multiply_rows(Rows<const float> values, const float *weight, int64_t depth, Rows<float> products, bool adds,
                   const float *next_weight) {
    Vector sums[Count][kBlockVectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vector factors[kBlockVectors];
        unroll<kBlockVectors>([&](auto v) { factors[v] = load(weight + k * kBlockColumns + v * kLanes); });
        __builtin_prefetch(next_weight + k * kCacheLine, 0, 2);
        unroll<Count>([&](auto row) {
            unroll<kBlockVectors>([&](auto v) { sums[row][v] += values.first[row * values.step + k] * factors[v]; });
        });
    }
    unroll<Count>([&](auto row) {
        unroll<kBlockVectors>([&](auto v) {
            float *target = products.first + row * products.step + v * kLanes;
            store(target, adds ? load(target) + sums[row][v] : sums[row][v]);
        });
    });
}

typedef void (*MultiplyRows)(Rows<const float>, const float *, int64_t, Rows<float>, bool, const float *);

template <int... Index>
INLINE MultiplyRows multiply_function(int64_t count, std::integer_sequence<int, Index...>) {
    static constexpr MultiplyRows functions[] = {multiply_rows<Index + 1>...};
    return functions[count - 1];
}

// products (rows, kBlockColumns) = values (rows, depth) x weight (depth, kBlockColumns), in blocks
INLINE void multiply_panel(Rows<const float> values, const float *weight, int64_t rows, int64_t depth,
                           Rows<float> products) {
    for (int64_t first = 0; first < depth; first += kBlockDepth, weight += kBlockDepth * kBlockColumns) {
        const int64_t length = smaller(depth - first, kBlockDepth);
        // Every block fetches a part of the weights that follow.
        const float *next_weight = weight + length * kBlockColumns;
        for (int64_t row = 0; row < rows; row += kBlockRows, next_weight += length * kCacheLine) {
            const auto multiply = multiply_function(smaller(rows - row, kBlockRows),
                                                    std::make_integer_sequence<int, kBlockRows>{});
            multiply(values.at(row, first), weight, length, products.at(row, 0), first > 0, next_weight);
        }
    }
}

}  // namespace

#endif
