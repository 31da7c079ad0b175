// GroupNorm and ReLU of float32 and bfloat16 images in channels_last format, in place. Declared again in group_norm.py.

#include <cmath>
#include <cstdint>

#include "threads.h"
#include "vectors.h"

namespace {

struct GroupNorm {
    void *pixels;  // (count, rows, channels)
    const float *weight, *bias;
    int64_t count, rows, channels, groups;
    double epsilon;
    int32_t is_bfloat16;
};

constexpr int64_t kTaskRows = 256;
constexpr int64_t kSummedRows = 16;  // whose values are summed up in float32

int64_t tasks_per_image(const GroupNorm &norm) { return (norm.rows + kTaskRows - 1) / kTaskRows; }

// Calls function(image, first row, last row) for the rows of one task.
template <typename Function>
void for_task(const GroupNorm &norm, int64_t task, Function function) {
    const int64_t image = task / tasks_per_image(norm), first = task % tasks_per_image(norm) * kTaskRows;
    function(image, first, smaller(first + kTaskRows, norm.rows));
}

// Adds the sums over a few rows, for some channels, of the differences from a pivot and of their squares. The sums
// of the values themselves and of their squares would lose the digits of a variance far below the mean.
template <int Vectors, typename Value>
INLINE void add_channels(const Value *pixels, int64_t rows, int64_t step, int64_t count, const Value *pivot,
                         double *sums, double *squares) {
    Vector row_sums[Vectors] = {}, row_squares[Vectors] = {}, pivots[Vectors];
    unroll<Vectors>([&](auto v) { pivots[v] = load(pivot + v * kLanes, count); });
    for (int64_t row = 0; row < rows; ++row) {
        unroll<Vectors>([&](auto v) {
            const Vector difference = load(pixels + row * step + v * kLanes, count) - pivots[v];
            row_sums[v] += difference;
            row_squares[v] += difference * difference;
        });
    }
    unroll<Vectors>([&](auto v) {
        for (int64_t lane = 0; lane < smaller(count, kLanes); ++lane) {
            sums[v * kLanes + lane] += row_sums[v][lane];
            squares[v * kLanes + lane] += row_squares[v][lane];
        }
    });
}

template <typename Value>
void add_rows(const GroupNorm &norm, const Value *pixels, int64_t rows, const Value *pivot, double *sums) {
    constexpr int kVectors = 4;
    double *squares = sums + norm.channels;
    int64_t c = 0;
    for (; c + kVectors * kLanes <= norm.channels; c += kVectors * kLanes) {
        add_channels<kVectors>(pixels + c, rows, norm.channels, kLanes, pivot + c, sums + c, squares + c);
    }
    for (; c < norm.channels; c += kLanes) {
        add_channels<1>(pixels + c, rows, norm.channels, norm.channels - c, pivot + c, sums + c, squares + c);
    }
}

// Writes the mean and the factor of each channel of one image, whose first pixel is the pivot. ``statistics`` are
// the sums and the sums of squares of each channel.
template <typename Value>
void prepare(const GroupNorm &norm, const Value *pivot, const double *statistics, float *means, float *factors) {
    const int64_t size = norm.channels / norm.groups;
    const double rows = double(norm.rows);
    for (int64_t first = 0; first < norm.channels; first += size) {
        double mean = 0, variance = 0;
        for (int64_t c = first; c < first + size; ++c) mean += (statistics[c] / rows + to_float(pivot[c])) / double(size);
        for (int64_t c = first; c < first + size; ++c) {
            const double shift = mean - to_float(pivot[c]);
            const double squares = statistics[norm.channels + c] - 2 * shift * statistics[c];
            variance += (squares / rows + shift * shift) / double(size);
        }
        const double scale = 1 / std::sqrt((variance < 0 ? 0 : variance) + norm.epsilon);
        for (int64_t c = first; c < first + size; ++c) {
            means[c] = float(mean);
            factors[c] = float(scale * norm.weight[c]);
        }
    }
}

template <typename Value>
void apply(const GroupNorm &norm, Value *pixels, int64_t rows, const float *means, const float *factors) {
    for (int64_t row = 0; row < rows; ++row, pixels += norm.channels) {
        for (int64_t c = 0; c < norm.channels; c += kLanes) {
            const int64_t count = norm.channels - c;
            // The mean first: with the bias it would be a large value whose rounding error remains.
            const Vector centered = load(pixels + c, count) - load(means + c, count);
            const Vector value = centered * load(factors + c, count) + load(norm.bias + c, count);
            store(pixels + c, activate(value, 0), count);
        }
    }
}

template <typename Value>
void normalize(const GroupNorm *norm, Value *images, double *statistics, float *coefficients, uint32_t threads,
               Parallel parallel) {
    const int64_t tasks = tasks_per_image(*norm), step = 2 * norm->channels;
    const int64_t image_step = norm->rows * norm->channels;
    run_in_threads(norm->count * tasks, 1, threads, parallel, [&](int64_t task, int64_t, int64_t) {
        double *sums = statistics + task * step;
        for (int64_t index = 0; index < step; ++index) sums[index] = 0;
        for_task(*norm, task, [&](int64_t image, int64_t first, int64_t last) {
            const Value *pixels = images + image * image_step;
            for (int64_t row = first; row < last; row += kSummedRows) {
                add_rows(*norm, pixels + row * norm->channels, smaller(last - row, kSummedRows), pixels, sums);
            }
        });
    });
    for (int64_t image = 0; image < norm->count; ++image) {
        double *sums = statistics + image * tasks * step;
        for (int64_t task = 1; task < tasks; ++task) {
            for (int64_t index = 0; index < step; ++index) sums[index] += sums[task * step + index];
        }
        float *means = coefficients + image * step;
        prepare(*norm, images + image * image_step, sums, means, means + norm->channels);
    }
    run_in_threads(norm->count * tasks, 1, threads, parallel, [&](int64_t task, int64_t, int64_t) {
        for_task(*norm, task, [&](int64_t image, int64_t first, int64_t last) {
            const float *means = coefficients + image * step;
            Value *pixels = images + image * image_step + first * norm->channels;
            apply(*norm, pixels, last - first, means, means + norm->channels);
        });
    });
}

}  // namespace

// statistics: (count, tasks_per_image, 2, channels), coefficients: (count, 2, channels)
extern "C" void group_norm_relu(const GroupNorm *norm, double *statistics, float *coefficients, uint32_t threads,
                                Parallel parallel) {
    if (norm->is_bfloat16) {
        normalize(norm, static_cast<Bfloat16 *>(norm->pixels), statistics, coefficients, threads, parallel);
    } else {
        normalize(norm, static_cast<float *>(norm->pixels), statistics, coefficients, threads, parallel);
    }
}
