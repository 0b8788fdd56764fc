// int8.cuh: numbers rounded to int8 in rows of one scale, and the mixing that comes before it in the paged cache (ops.h).
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

constexpr float LARGEST = 3.40282347e38f, LEAST_SCALED = 1e-30f;

// The size of x; of what is no number or not finite, infinity.
__device__ inline float int8_size(float x) { return fabsf(x) <= LARGEST ? fabsf(x) : INFINITY; }

// Of a row whose largest int8_size is `most`: an integer's worth, and by what numbers are multiplied. NaN and 0 where one is not
// finite; 0 and 0 of a row of next to nothing.
struct Int8Scale {
  float scale, inverse;
};
__device__ inline Int8Scale int8_scale(float most) {
  if (most > LARGEST) return {NAN, 0.0f};
  return most >= LEAST_SCALED ? Int8Scale{most / 127.0f, 127.0f / most} : Int8Scale{0.0f, 0.0f};
}
__device__ inline int8_t to_int8(float x, float inverse) {
  return inverse == 0.0f ? static_cast<int8_t>(0) : static_cast<int8_t>(rintf(x * inverse));
}

// x = H x on each block of B numbers of a vector, B the largest power of two in D: butterflies of distance 1, 2, .. B/2. at(d, c)
// is number d of vector c. By the threads me, me + team, .. of a team, which meet() before and behind each distance.
template <class At, class Meet>
__device__ void butterflies(int D, int vectors, int me, int team, const At& at, const Meet& meet) {
  meet();
  for (int half = 1; half < (D & -D); half *= 2) {
    for (int i = me; i < D / 2 * vectors; i += team) {
      const int pair = i / vectors, c = i % vectors, d = 2 * pair - (pair & (half - 1));
      float &x = at(d, c), &y = at(d + half, c);
      const float a = x, b = y;
      x = a + b, y = a - b;
    }
    meet();
  }
}

}  // namespace freedive::cuda
