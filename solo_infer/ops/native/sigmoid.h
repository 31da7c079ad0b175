// Scores of logits.

#ifndef SOLO_INFER_SIGMOID_H
#define SOLO_INFER_SIGMOID_H

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(int32_t))));

INLINE Vector bits_as_floats(IntVector bits) {
    Vector values;
    std::memcpy(&values, &bits, sizeof(values));
    return values;
}

INLINE Vector clamp(Vector value, float low, float high) {
    value = value < low ? Vector{} + low : value;
    return value > high ? Vector{} + high : value;
}

// Cephes' expf: 2^n times a polynomial of the rest, with an error below 2e-7 of the result.
INLINE Vector exponential(Vector x) {
    x = clamp(x, -87, 88);
    const Vector shifted = x * 1.44269504f + 0x1.8p23f;  // rounds to an integer
    const Vector n = shifted - 0x1.8p23f;
    const Vector rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = Vector{} + 1.9875691500e-4f;
    for (const float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
        sum = sum * rest + factor;
    }
    sum = sum * rest * rest + rest + 1;
    return sum * bits_as_floats((__builtin_convertvector(n, IntVector) + 127) << 23);
}

INLINE Vector sigmoid(Vector x) { return 1 / (1 + exponential(-x)); }

}  // namespace

#endif
