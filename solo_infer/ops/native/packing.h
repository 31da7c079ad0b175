// Bits of packed masks: the first pixel is the highest bit of a byte.

#ifndef SOLO_INFER_PACKING_H
#define SOLO_INFER_PACKING_H

#include <cstdint>

namespace {

// Writes the bits of lanes, the lowest of which is that of the first pixel, to some bytes.
inline void pack_lanes(uint32_t bits, uint8_t *packed, int64_t bytes) {
    // The order of the bits of each byte is reversed.
    bits = (bits >> 1 & 0x55555555) | (bits & 0x55555555) << 1;
    bits = (bits >> 2 & 0x33333333) | (bits & 0x33333333) << 2;
    bits = (bits >> 4 & 0x0F0F0F0F) | (bits & 0x0F0F0F0F) << 4;
    for (int64_t byte = 0; byte < bytes; ++byte) packed[byte] = uint8_t(bits >> 8 * byte);
}

}  // namespace

#endif
