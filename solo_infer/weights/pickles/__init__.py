"""Read PyTorch pickles without running code from them.

The ``weights_only`` mode of ``torch.load`` is not an option: before torch 2.6, a file could run code in it
(CVE-2025-32434), it refuses the globals that mmengine writes to checkpoints, and torch 2.1 is supported here.

``unpickler`` interprets pickles and calls only functions that its caller allows; ``reader`` reads both of
PyTorch's file formats with it.
"""
