"""Results that travel: reports and histories to JSON, CSV and npz and back, and kernels to safetensors."""
