// Masks of Tiny in tiles of pixels. Declared again in tile_masks.py.
//
// A tile of the mask features is transposed once for all of its masks: a vector has the pixels of a tile.

#include <cstdint>

#include "packing.h"
#include "sigmoid.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct TileMasks {
    const void *features;         // (rows, columns, channels)
    const float *weights;         // (masks, channels + kCoordinates)
    const float *boxes;           // (masks, 4), x1 y1 x2 y2 in input pixels
    const int64_t *tiles, *masks; // (pairs), tile by tile
    float *logits;                // (pairs, kPixels)
    int64_t pairs, channels, row_step, column_step, tile_columns;
    int32_t is_bfloat16;
    float stride, unit;                           // of the mask features and of the coordinates, in input pixels
    float margin, slope, reach, least_side, limit;  // of the fall of the logits beyond their boxes
};

constexpr int64_t kTile = 8, kPixels = kTile * kTile, kCoordinates = 6;
constexpr int64_t kTaskPairs = 32;

// The mask features of a tile and the maps 1, x, y, x^2, y^2, xy, (channels + kCoordinates, kPixels).
template <typename Value>
void write_maps(const TileMasks &layer, int64_t tile, float *maps) {
    const int64_t top = tile / layer.tile_columns * kTile, left = tile % layer.tile_columns * kTile;
    const float scale = layer.stride / layer.unit;
    float *coordinates = maps + layer.channels * kPixels;
    for (int64_t pixel = 0; pixel < kPixels; ++pixel) {
        const int64_t row = top + pixel / kTile, column = left + pixel % kTile;
        const Value *source = static_cast<const Value *>(layer.features) + row * layer.row_step + column * layer.column_step;
        for (int64_t c = 0; c < layer.channels; ++c) maps[c * kPixels + pixel] = to_float(source[c]);
        const float x = (float(column) + 0.5f) * scale, y = (float(row) + 0.5f) * scale;
        const float values[kCoordinates] = {1, x, y, x * x, y * y, x * y};
        for (int64_t index = 0; index < kCoordinates; ++index) coordinates[index * kPixels + pixel] = values[index];
    }
}

// How far the pixels of a tile are beyond a box along one axis, in its sides, and whether they are too far.
struct Beyond {
    float distances[kTile];
    bool is_outside[kTile];

    Beyond(const TileMasks &layer, int64_t first, float low, float high) {
        const float side = high - low, divisor = side > layer.least_side ? side : layer.least_side;
        const float reach = layer.reach * side;
        for (int64_t index = 0; index < kTile; ++index) {
            const float position = (float(first + index) + 0.5f) * layer.stride;
            const float below = low - position, above = position - high;
            const float distance = (below > above ? below : above) - layer.margin;
            distances[index] = (distance > 0 ? distance : 0) / divisor;
            is_outside[index] = distance >= reach;
        }
    }
};

// Subtracts the fall beyond the box from the logits of a tile, and clips them.
void confine(const TileMasks &layer, int64_t tile, const float *box, float *logits) {
    const Beyond y(layer, tile / layer.tile_columns * kTile, box[1], box[3]);
    const Beyond x(layer, tile % layer.tile_columns * kTile, box[0], box[2]);
    for (int64_t row = 0; row < kTile; ++row) {
        for (int64_t column = 0; column < kTile; ++column) {
            float &logit = logits[row * kTile + column];
            logit -= layer.slope * (y.distances[row] + x.distances[column]);
            logit = logit < -layer.limit ? -layer.limit : logit > layer.limit ? layer.limit : logit;
            if (y.is_outside[row] || x.is_outside[column]) logit = -layer.limit;
        }
    }
}

template <typename Value>
void write_logits(const TileMasks &layer, int64_t first, int64_t last, float *maps) {
    constexpr int kVectors = kPixels / kLanes;
    const int64_t depth = layer.channels + kCoordinates;
    for (int64_t pair = first; pair < last; ++pair) {
        const int64_t tile = layer.tiles[pair], mask = layer.masks[pair];
        if (pair == first || tile != layer.tiles[pair - 1]) write_maps<Value>(layer, tile, maps);
        const float *weights = layer.weights + mask * depth;
        Vector sums[kVectors] = {};
        for (int64_t index = 0; index < depth; ++index) {
            unroll<kVectors>([&](auto v) { sums[v] += weights[index] * load(maps + index * kPixels + v * kLanes); });
        }
        float *logits = layer.logits + pair * kPixels;
        unroll<kVectors>([&](auto v) { store(logits + v * kLanes, sums[v]); });
        confine(layer, tile, layer.boxes + 4 * mask, logits);
    }
}

struct TileStatistics {
    const float *logits;           // (pairs, kPixels)
    const int64_t *tiles, *masks;  // (pairs)
    float *areas, *sums;           // (pairs)
    uint8_t *packed;               // (masks, tiles, kTile), zeros
    int64_t pairs, tiles_per_mask;
    float threshold;
};

constexpr int64_t kTaskTiles = 256;

void add_tile(const TileStatistics &statistics, int64_t pair) {
    const float *logits = statistics.logits + pair * kPixels;
    uint8_t *packed = statistics.packed + (statistics.masks[pair] * statistics.tiles_per_mask + statistics.tiles[pair]) * kTile;
    Vector sums = {};
    int area = 0;
    for (int64_t pixel = 0; pixel < kPixels; pixel += kLanes) {
        const Vector scores = sigmoid(load(logits + pixel));
        const uint32_t bits = lanes_above(scores, statistics.threshold);
        sums += scores > statistics.threshold ? scores : Vector{};
        area += __builtin_popcount(bits);
        pack_lanes(bits, packed + pixel / 8, kLanes / 8);
    }
    float sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    statistics.areas[pair] = float(area);
    statistics.sums[pair] = sum;
}

struct SoftMasks {
    const float *logits;           // (pairs, kPixels)
    const int64_t *tiles, *masks;  // (pairs)
    const int64_t *positions;      // (masks), -1 for those that are left out
    float *soft;                   // (chosen masks, tile_rows * kTile, tile_columns * kTile)
    int64_t pairs, tile_rows, tile_columns;
    float limit;
};

void write_soft_tile(const SoftMasks &layer, int64_t pair) {
    const int64_t position = layer.positions[layer.masks[pair]], width = layer.tile_columns * kTile;
    if (position < 0) return;
    const int64_t row = layer.tiles[pair] / layer.tile_columns, column = layer.tiles[pair] % layer.tile_columns;
    float *soft = layer.soft + ((position * layer.tile_rows + row) * width + column) * kTile;
    const float *logits = layer.logits + pair * kPixels;
    for (int64_t y = 0; y < kTile; ++y) {
        for (int64_t x = 0; x < kTile; ++x) soft[y * width + x] = logits[y * kTile + x] / (2 * layer.limit) + 0.5f;
    }
}

}  // namespace

extern "C" {

// Each thread uses (channels + kCoordinates) * kPixels values of the memory.
void write_tile_logits(const TileMasks *layer, float *memory, uint32_t threads, Parallel parallel) {
    const auto write = layer->is_bfloat16 ? write_logits<Bfloat16> : write_logits<float>;
    run_in_threads(layer->pairs, kTaskPairs, threads, parallel, [&](int64_t first, int64_t last, int64_t thread) {
        write(*layer, first, last, memory + thread * (layer->channels + kCoordinates) * kPixels);
    });
}

void add_tiles(const TileStatistics *statistics, uint32_t threads, Parallel parallel) {
    run_in_threads(statistics->pairs, kTaskTiles, threads, parallel, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t pair = first; pair < last; ++pair) add_tile(*statistics, pair);
    });
}

void write_soft_tiles(const SoftMasks *layer, uint32_t threads, Parallel parallel) {
    run_in_threads(layer->pairs, kTaskTiles, threads, parallel, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t pair = first; pair < last; ++pair) write_soft_tile(*layer, pair);
    });
}
}
