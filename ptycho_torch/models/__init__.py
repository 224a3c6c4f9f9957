"""Networks: backbones, physics input, heads, the saved model, and ONNX export."""
