// OpenCV's bilinear resize of uint8 images, and their normalization. Declared again in preprocess.py.
//
// The arithmetic is that of solo_infer/ops/cv2_resize.py, bit for bit.

#include <cstdint>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t kColors = 3;

struct Image {
    const uint8_t *pixels;  // rows of pixels, row_step apart
    float *output;          // (height, width, kColors), rows output_step apart
    const int32_t *columns, *rows;  // (4, width) and (4, height): both neighbors and their weights
    const float *mean, *std;        // (width, kColors)
    int64_t height, width, row_step, output_step;
};

// (width, kColors), the weighted sums of the two neighbors of each column.
void add_columns(const Image &image, int64_t row, int32_t *sums) {
    const uint8_t *pixels = image.pixels + row * image.row_step;
    const int32_t *left = image.columns, *right = left + image.width;
    const int32_t *left_weight = right + image.width, *right_weight = left_weight + image.width;
    for (int64_t x = 0; x < image.width; ++x) {
        const uint8_t *a = pixels + kColors * left[x], *b = pixels + kColors * right[x];
        for (int64_t c = 0; c < kColors; ++c) {
            sums[kColors * x + c] = (a[c] * left_weight[x] + b[c] * right_weight[x]) >> 4;
        }
    }
}

void write_row(const Image &image, int64_t y, const int32_t *upper, const int32_t *lower) {
    const int32_t upper_weight = image.rows[2 * image.height + y], lower_weight = image.rows[3 * image.height + y];
    float *output = image.output + y * image.output_step;
    for (int64_t i = 0; i < image.width * kColors; ++i) {
        const int32_t sum = (upper[i] * upper_weight >> 16) + (lower[i] * lower_weight >> 16);
        output[i] = (float((sum + 2) >> 2 & 0xFF) - image.mean[i]) / image.std[i];
    }
}

}  // namespace

extern "C" {

// Memory for each thread: two rows (width, kColors), memory_step apart.
void resize_image(const Image *image, int64_t task_rows, int32_t *memory, int64_t memory_step, uint32_t threads,
                  Parallel parallel) {
    run_in_threads(image->height, task_rows, threads, parallel, [&](int64_t first, int64_t last, int64_t thread) {
        int64_t stored[2] = {-1, -1};  // source rows whose sums are in memory
        const auto sums_of = [&](int64_t row) {
            int32_t *sums = memory + (2 * thread + row % 2) * memory_step;
            if (stored[row % 2] != row) add_columns(*image, row, sums);
            stored[row % 2] = row;
            return sums;
        };
        for (int64_t y = first; y < last; ++y) {
            const int32_t *upper = sums_of(image->rows[y]);
            write_row(*image, y, upper, sums_of(image->rows[image->height + y]));
        }
    });
}
}
