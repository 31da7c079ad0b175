"""Run ONNX files with onnxruntime. Import it after ``pytest.importorskip("onnxruntime")``."""

import onnxruntime

# Size of the network input in pixels; a resized test photo of 96 x 144 does not fill it.
INPUT_SIZE = (96, 160)


def run_onnx(path, inputs):
    """Return a session of an ONNX file, and its outputs for an array (1, 3, H, W) float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.run(None, {"images": inputs})
