// Winograd convolutions of float32 and bfloat16 images in channels_last format, computed in float32.
//
// The method is that of solo_infer/ops/winograd.py. A block of tiles is transformed, multiplied by
// the weights of each point and transformed back while it is in the cache. The structures and the function are
// declared again in winograd.py, with the meaning of their fields.

#include <cstdint>

#include "threads.h"
#include "vectors.h"

namespace {

struct Map {
    const void *pixels;
    void *outputs;
    int64_t count, height, width, out_height, out_width, above;
    int64_t image_step, row_step, column_step;
    int64_t out_image_step, out_row_step, out_column_step;
};

struct Layer {
    const float *weight, *bias;
    int64_t channels, out_channels;
    int32_t stride, taps, adds, streams, is_bfloat16;
    float negative_slope;
};

// The first ones of these and infinity: the points of solo_infer/ops/winograd_matrices.py.
constexpr double kPoints[] = {0, 1, -1, 2, -0.5};

template <int Height, int Width>
struct Matrix {
    float at[Height][Width];
};

// Row i has the coefficients of the product of (x - point) over all finite points but the i-th.
template <int Side>
constexpr Matrix<Side, Side> input_matrix() {
    Matrix<Side, Side> matrix{};
    for (int row = 0; row < Side; ++row) {
        double coefficients[Side] = {1};
        int degree = 0;
        for (int index = 0; index < Side - 1; ++index) {
            if (index == row) continue;
            ++degree;
            for (int power = degree; power >= 0; --power) {
                const double shifted = power > 0 ? coefficients[power - 1] : 0;
                coefficients[power] = shifted - kPoints[index] * coefficients[power];
            }
        }
        for (int power = 0; power < Side; ++power) matrix.at[row][power] = float(coefficients[power]);
    }
    return matrix;
}

// Column i has the powers of the i-th point.
template <int Side, int Tile>
constexpr Matrix<Tile, Side> output_matrix() {
    Matrix<Tile, Side> matrix{};
    for (int column = 0; column < Side - 1; ++column) {
        double power = 1;
        for (int row = 0; row < Tile; ++row, power *= kPoints[column]) matrix.at[row][column] = float(power);
    }
    matrix.at[Tile - 1][Side - 1] = 1;
    return matrix;
}

// Multiplies a constant matrix by the vectors get(0), get(1), ..., and gives the result to put(row, vector).
template <int Height, int Width, const Matrix<Height, Width> &matrix, typename Get, typename Put>
INLINE void multiply(Get get, Put put) {
    Vector values[Width];
    unroll<Width>([&](auto column) { values[column] = get(column); });
    unroll<Height>([&](auto row) {
        Vector sum = {};
        unroll<Width>([&](auto column) {
            constexpr float factor = matrix.at[decltype(row)::value][decltype(column)::value];
            if constexpr (factor != 0) sum += factor * values[column];
        });
        put(row, sum);
    });
}

constexpr int kTile = 4;  // outputs along a side of a tile

struct Tile {
    const Map *map;
    int64_t image, row, column;
};

// The tiles of all maps in turn, by image, row and column.
class TileSequence {
  public:
    TileSequence(const Map *maps, int64_t first) : next_{maps, 0, 0, 0} {
        for (; first >= next_.map->count * rows() * columns(); ++next_.map) {
            first -= next_.map->count * rows() * columns();
        }
        next_ = {next_.map, first / (rows() * columns()), first / columns() % rows(), first % columns()};
    }

    Tile next() {
        const Tile tile = next_;
        if (++next_.column < columns()) return tile;
        next_.column = 0;
        if (++next_.row < rows()) return tile;
        next_.row = 0;
        if (++next_.image < next_.map->count) return tile;
        next_ = {next_.map + 1, 0, 0, 0};
        return tile;
    }

  private:
    int64_t rows() const { return (next_.map->out_height + kTile - 1) / kTile; }
    int64_t columns() const { return (next_.map->out_width + kTile - 1) / kTile; }

    Tile next_;
};

// kTaps is the number of weights along a side of a filter. With stride 2, the pixels of every other row and column are
// an image of their own, a phase, and filters have 2 x 2 taps in each: with kTaps = 3, the last ones of some are zero.
template <int kStride, int kTaps, typename Value>
struct Winograd {
    static constexpr int kPhases = kStride * kStride;
    static constexpr int kPhaseTaps = kStride == 1 ? kTaps : 2;
    static constexpr int kSide = kTile + kPhaseTaps - 1;
    static constexpr Matrix<kSide, kSide> kInput = input_matrix<kSide>();
    static constexpr Matrix<kTile, kSide> kOutput = output_matrix<kSide, kTile>();

    // The values of filters at infinity are their last taps, and the products with those that are zero are left out.
    static constexpr bool is_used(int phase, int point) {
        if (kStride == 1 || kTaps == 4) return true;
        const bool is_last_row = point / kSide == kSide - 1, is_last_column = point % kSide == kSide - 1;
        return !(phase / kStride == 1 && is_last_row) && !(phase % kStride == 1 && is_last_column);
    }

    // The number of phases before one, or of all, that are used at a point.
    static constexpr int used_phases(int point, int end = kPhases) {
        int count = 0;
        for (int phase = 0; phase < end; ++phase) count += is_used(phase, point);
        return count;
    }

    // Writes the values at the points of one tile; those of a point are point_step apart from the next ones.
    static void transform_inputs(const Tile &tile, int64_t channels, float *values, int64_t point_step) {
        const Map &map = *tile.map;
        const int64_t next_tile = kTile * kStride * map.column_step;
        unroll<kPhases>([&](auto phase) {
            const Value *sources[kSide][kSide];  // null in the padding
            for (int i = 0; i < kSide; ++i) {
                const int64_t y = (tile.row * kTile + i) * kStride + phase / kStride - map.above;
                for (int j = 0; j < kSide; ++j) {
                    const int64_t x = (tile.column * kTile + j) * kStride + phase % kStride - 1;
                    const bool is_inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
                    const int64_t offset = tile.image * map.image_step + y * map.row_step + x * map.column_step;
                    sources[i][j] = is_inside ? static_cast<const Value *>(map.pixels) + offset : nullptr;
                }
            }
            for (int64_t c = 0; c < channels; c += kLanes) {
                transform_vector<phase>(sources, c, channels, values + c, point_step);
                // The columns that are new in the next tile: fetched while this one is transformed.
                for (int i = 0; i < kSide; ++i) {
                    for (int j = kSide - kTile; j < kSide; ++j) {
                        if (sources[i][j]) __builtin_prefetch(sources[i][j] + next_tile + c, 0, 2);
                    }
                }
            }
        });
    }

    template <int kPhase>
    static INLINE void transform_vector(const Value *const (&sources)[kSide][kSide], int64_t first, int64_t channels,
                                        float *values, int64_t point_step) {
        const int64_t count = channels - first;
        Vector columns[kSide][kSide];
        unroll<kSide>([&](auto j) {
            multiply<kSide, kSide, kInput>(
                [&](auto i) { return sources[i][j] ? load(sources[i][j] + first, count) : Vector{}; },
                [&](auto i, Vector value) { columns[i][j] = value; });
        });
        unroll<kSide>([&](auto i) {
            multiply<kSide, kSide, kInput>(
                [&](auto j) { return columns[i][j]; },
                [&](auto j, Vector value) {
                    constexpr int point = decltype(i)::value * kSide + decltype(j)::value;
                    if constexpr (is_used(kPhase, point)) {
                        store(values + point * point_step + used_phases(point, kPhase) * channels, value, count);
                    }
                });
        });
    }

    static void transform_outputs(const Tile &tile, const Layer &layer, const float *products,
                                  int64_t point_step) {
        const Map &map = *tile.map;
        const int64_t y = tile.row * kTile, x = tile.column * kTile;
        const int64_t rows = map.out_height - y, columns = map.out_width - x;
        Value *outputs = static_cast<Value *>(map.outputs) + tile.image * map.out_image_step + y * map.out_row_step +
                         x * map.out_column_step;
        for (int64_t k = 0; k < layer.out_channels; k += kLanes) {
            const int64_t count = layer.out_channels - k;
            const Vector bias = layer.bias ? load(layer.bias + k, count) : Vector{};
            Vector interpolated[kTile][kSide];
            unroll<kSide>([&](auto j) {
                multiply<kTile, kSide, kOutput>(
                    [&](auto i) { return load(products + k + (i * kSide + j) * point_step); },
                    [&](auto i, Vector value) { interpolated[i][j] = value; });
            });
            unroll<kTile>([&](auto i) {
                multiply<kTile, kSide, kOutput>([&](auto j) { return interpolated[i][j]; },
                                                [&](auto j, Vector value) {
                    if (i >= rows || j >= columns) return;
                    Value *target = outputs + i * map.out_row_step + j * map.out_column_step + k;
                    if (layer.adds) value += load(target, count);
                    value = activate(value + bias, layer.negative_slope);
                    if (layer.streams) return stream(target, value);
                    store(target, value, count);
                });
            });
        }
    }

    static void convolve(const Map *maps, const Layer &layer, int64_t first, int64_t last, float *memory) {
        const int64_t depth = kPhases * layer.channels, width = round_up(layer.out_channels, kBlockColumns);
        const int64_t tiles = last - first;
        // Without the cache lines, the values of neighboring tiles or points could share a set of the cache.
        const int64_t tile_step = depth + kCacheLine;
        const int64_t value_step = tiles * tile_step + kCacheLine, product_step = tiles * width + kCacheLine;
        float *values = memory, *products = memory + kSide * kSide * value_step;
        TileSequence inputs(maps, first), outputs(maps, first);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            transform_inputs(inputs.next(), layer.channels, values + tile * tile_step, value_step);
        }
        const float *weight = layer.weight;
        for (int point = 0; point < kSide * kSide; ++point) {
            const int64_t length = used_phases(point) * layer.channels;
            for (int64_t k = 0; k < width; k += kBlockColumns, weight += length * kBlockColumns) {
                multiply_panel({values + point * value_step, tile_step}, weight, tiles, length,
                               {products + point * product_step + k, width});
            }
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
            transform_outputs(outputs.next(), layer, products + tile * width, product_step);
        }
        if (layer.streams) end_streams();
    }
};

typedef void (*Convolve)(const Map *, const Layer &, int64_t, int64_t, float *);

template <typename Value>
Convolve convolve_function(const Layer &layer) {
    if (layer.stride == 1) return Winograd<1, 3, Value>::convolve;
    return layer.taps == 3 ? Winograd<2, 3, Value>::convolve : Winograd<2, 4, Value>::convolve;
}

}  // namespace

extern "C" {

extern const int32_t interface_version, block_rows, block_columns;
const int32_t interface_version = 3, block_rows = kBlockRows, block_columns = kBlockColumns;

// Each thread uses a part of the memory.
void convolve_winograd(const Map *maps, const Layer *layer, int64_t tiles, int64_t max_tiles, float *memory,
                       int64_t memory_step, uint32_t threads, Parallel parallel) {
    const Convolve convolve = layer->is_bfloat16 ? convolve_function<Bfloat16>(*layer) : convolve_function<float>(*layer);
    run_in_threads(tiles, max_tiles, threads, parallel, [&](int64_t first, int64_t last, int64_t thread) {
        convolve(maps, *layer, first, last, memory + thread * memory_step);
    });
}
}
