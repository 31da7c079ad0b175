// 1x1 convolutions of float32 images in channels_last format. Declared again in pointwise.py.

#include <cstdint>

#include "threads.h"
#include "vectors.h"

namespace {

struct Pointwise {
    const float *pixels;  // (count, channels)
    const float *weight;  // (panels, channels, kBlockColumns)
    const float *bias;    // (panels * kBlockColumns)
    float *outputs;       // (count, out_channels)
    int64_t count, channels, out_channels;
    int32_t streams;
    float negative_slope;
};

constexpr int64_t kTaskPixels = 8 * kBlockRows;

// The products of some pixels and a panel of channels stay in the first-level cache until their outputs are written.
void convolve_panel(const Pointwise &layer, int64_t first, int64_t last, int64_t panel) {
    float products[kTaskPixels * kBlockColumns];
    multiply_panel({layer.pixels + first * layer.channels, layer.channels},
                   layer.weight + panel * layer.channels, last - first, layer.channels, {products, kBlockColumns});
    for (int64_t pixel = first; pixel < last; ++pixel) {
        for (int64_t k = panel; k < smaller(panel + kBlockColumns, layer.out_channels); k += kLanes) {
            const float *product = products + (pixel - first) * kBlockColumns + k - panel;
            const Vector value = activate(load(product) + load(layer.bias + k), layer.negative_slope);
            float *target = layer.outputs + pixel * layer.out_channels + k;
            if (layer.streams) {
                stream(target, value);
            } else {
                store(target, value, layer.out_channels - k);
            }
        }
    }
}

}  // namespace

extern "C" void convolve_pointwise(const Pointwise *layer, uint32_t threads, Parallel parallel) {
    run_in_threads(layer->count, kTaskPixels, threads, parallel, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t panel = 0; panel < layer->out_channels; panel += kBlockColumns) {
            convolve_panel(*layer, first, last, panel);
        }
        if (layer->streams) end_streams();
    });
}
