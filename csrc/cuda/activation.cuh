// activation.cuh: gelu and SwiGLU of one number, for the ops that are these alone (activation.cu) and the products that end with
// them (matmul_rounded.cuh, matmul.cu): the same bits from both.
#pragma once
#include <cuda_runtime.h>

namespace freedive::cuda {

constexpr float GELU_SCALE = 0.7978845608028654f, GELU_CUBIC = 0.044715f;  // sqrt(2/pi)

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + tanhf(GELU_SCALE * (x + GELU_CUBIC * x * x * x))); }

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

}  // namespace freedive::cuda
