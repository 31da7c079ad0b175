// The stem of ResNets for float32 images in channels_last format: a 7x7 convolution with stride 2, ReLU and 3x3 max
// pooling with stride 2. Declared again in stem.py.
//
// Rows of the convolution stay in the cache until they are pooled.

#include <cstdint>
#include <cstring>

#include "threads.h"
#include "vectors.h"

namespace {

struct Stem {
    const float *pixels;        // (count, height, width, channels)
    const float *weight;        // (panels, kTaps * kTaps * channels, kBlockColumns)
    const float *bias;          // (panels * kBlockColumns)
    float *outputs;             // (count, pooled height, pooled width, out_channels)
    int64_t count, height, width, channels, out_channels;
};

constexpr int64_t kTaps = 7, kPadding = 3;
constexpr int64_t kPaddedRows = 8, kConvolvedRows = 3;  // that are kept

int64_t halved(int64_t size) { return (size + 1) / 2; }

// Outputs of Count adjacent pixels and a panel of channels. Image rows are padded on the left.
template <int Count>
void convolve_pixels(const float *const *rows, int64_t first, int64_t channels, const float *weight, const float *bias,
                     Rows<float> outputs) {
    Vector sums[Count][kBlockVectors];
    unroll<Count>([&](auto pixel) {
        unroll<kBlockVectors>([&](auto v) { sums[pixel][v] = load(bias + v * kLanes); });
    });
    const int64_t depth = kTaps * channels, step = 2 * channels;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
        const float *values = rows[tap] + first * step;
        for (int64_t k = 0; k < depth; ++k, weight += kBlockColumns) {
            Vector factors[kBlockVectors];
            unroll<kBlockVectors>([&](auto v) { factors[v] = load(weight + v * kLanes); });
            unroll<Count>([&](auto pixel) {
                unroll<kBlockVectors>([&](auto v) { sums[pixel][v] += values[pixel * step + k] * factors[v]; });
            });
        }
    }
    unroll<Count>([&](auto pixel) {
        unroll<kBlockVectors>([&](auto v) { store(outputs.at(pixel, v * kLanes).first, sums[pixel][v]); });
    });
}

typedef void (*ConvolvePixels)(const float *const *, int64_t, int64_t, const float *, const float *, Rows<float>);

template <int... Index>
INLINE ConvolvePixels convolve_function(int64_t count, std::integer_sequence<int, Index...>) {
    static constexpr ConvolvePixels functions[] = {convolve_pixels<Index + 1>...};
    return functions[count - 1];
}

// NaN, if one of the values is.
INLINE Vector greater(Vector a, Vector b) { return (a > b) | (a != a) ? a : b; }

// The rows of one image that a thread computes one after another, in its part of the memory.
class StemRows {
  public:
    StemRows(const Stem &stem, int64_t image, float *memory)
        : stem_(stem),
          image_(image),
          out_height_(halved(stem.height)),
          out_width_(halved(stem.width)),
          width_(round_up(stem.out_channels, kBlockColumns)),
          padded_step_(padded_width(stem) * stem.channels),
          padded_(memory),
          convolved_(memory + kPaddedRows * padded_step_) {}

    static int64_t memory(const Stem &stem) {
        return kPaddedRows * padded_width(stem) * stem.channels +
               kConvolvedRows * halved(stem.width) * round_up(stem.out_channels, kBlockColumns);
    }

    void pool(int64_t first, int64_t last) {
        int64_t next_row = first > 0 ? 2 * first - 1 : 0;  // of the convolution
        next_padded_ = 2 * next_row - kPadding;
        for (int64_t row = first; row < last; ++row) {
            const int64_t end = smaller(2 * row + 2, out_height_);
            for (; next_row < end; ++next_row) convolve(next_row);
            pool_row(row, 2 * row - (row > 0), end);
        }
    }

  private:
    static int64_t padded_width(const Stem &stem) { return 2 * halved(stem.width) - 2 + kTaps; }

    float *padded_row(int64_t y) const { return padded_ + (y + kPaddedRows) % kPaddedRows * padded_step_; }
    float *convolved_row(int64_t y) const { return convolved_ + y % kConvolvedRows * out_width_ * width_; }

    void pad(int64_t y) const {
        float *row = padded_row(y);
        std::memset(row, 0, padded_step_ * sizeof(float));
        if (y < 0 || y >= stem_.height) return;
        const int64_t length = stem_.width * stem_.channels;
        std::memcpy(row + kPadding * stem_.channels, stem_.pixels + (image_ * stem_.height + y) * length,
                    length * sizeof(float));
    }

    void convolve(int64_t y) {
        for (; next_padded_ < 2 * y - kPadding + kTaps; ++next_padded_) pad(next_padded_);
        const float *rows[kTaps];
        for (int64_t tap = 0; tap < kTaps; ++tap) rows[tap] = padded_row(2 * y - kPadding + tap);
        for (int64_t k = 0; k < width_; k += kBlockColumns) {
            const float *weight = stem_.weight + k * kTaps * kTaps * stem_.channels;
            for (int64_t x = 0; x < out_width_; x += kBlockRows) {
                const auto function = convolve_function(smaller(out_width_ - x, kBlockRows),
                                                        std::make_integer_sequence<int, kBlockRows>{});
                function(rows, x, stem_.channels, weight, stem_.bias + k,
                         {convolved_row(y) + x * width_ + k, width_});
            }
        }
    }

    // Writes one row of maxima over the convolved rows [top, bottom).
    void pool_row(int64_t row, int64_t top, int64_t bottom) const {
        const int64_t pooled_width = halved(out_width_), pooled_height = halved(out_height_);
        float *outputs = stem_.outputs + (image_ * pooled_height + row) * pooled_width * stem_.out_channels;
        for (int64_t x = 0; x < pooled_width; ++x, outputs += stem_.out_channels) {
            const int64_t left = 2 * x - (x > 0), right = smaller(2 * x + 2, out_width_);
            for (int64_t k = 0; k < stem_.out_channels; k += kLanes) {
                Vector highest = {};  // ReLU
                for (int64_t y = top; y < bottom; ++y) {
                    const float *values = convolved_row(y) + k;
                    for (int64_t column = left; column < right; ++column) {
                        highest = greater(highest, load(values + column * width_));
                    }
                }
                store(outputs + k, highest, stem_.out_channels - k);
            }
        }
    }

    const Stem &stem_;
    int64_t image_, out_height_, out_width_, width_, padded_step_, next_padded_ = 0;
    float *padded_, *convolved_;
};

}  // namespace

extern "C" {

// The number of values of each thread's memory.
int64_t stem_memory(const Stem *stem) { return StemRows::memory(*stem); }

// Computes ``rows`` pooled rows at a time.
void run_stem(const Stem *stem, int64_t rows, float *memory, uint32_t threads, Parallel parallel) {
    const int64_t height = halved(halved(stem->height)), tasks = (height + rows - 1) / rows;
    run_in_threads(stem->count * tasks, 1, threads, parallel, [&](int64_t task, int64_t, int64_t thread) {
        const int64_t first = task % tasks * rows;
        StemRows part(*stem, task / tasks, memory + thread * StemRows::memory(*stem));
        part.pool(first, smaller(first + rows, height));
    });
}
}
