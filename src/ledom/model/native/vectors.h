/* What the kernels share: vectors as wide as the processor's, and the exponential. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define WIDE 4 /* vectors per row of a register tile: 6 x 4 of the 32 registers */
#elif defined(__AVX__)
#define LANES 8
#define WIDE 2 /* 6 x 2 of the 16 registers */
#else
#define LANES 4
#define WIDE 4
#endif
#define ROWS 6              /* rows of a register tile */
#define TILE (WIDE * LANES) /* its columns */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int64_t i64;
typedef uint64_t u64;

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* x * y + sum, rounded once where the processor can. The compiler itself must not fuse products with
   sums (-ffp-contract=off): whether it does depends on the code around them, so a text's scores would
   depend on its batch. */
#if defined(__AVX512F__)
INLINE vec add_product(vec sum, float x, vec y) {
    return (vec)_mm512_fmadd_ps(_mm512_set1_ps(x), (__m512)y, (__m512)sum);
}
#elif defined(__FMA__)
INLINE vec add_product(vec sum, float x, vec y) {
    return (vec)_mm256_fmadd_ps(_mm256_set1_ps(x), (__m256)y, (__m256)sum);
}
#elif defined(__aarch64__)
INLINE vec add_product(vec sum, float x, vec y) {
    return (vec)vfmaq_n_f32((float32x4_t)sum, (float32x4_t)y, x);
}
#else
INLINE vec add_product(vec sum, float x, vec y) { return sum + x * y; }
#endif

#if defined(__FMA__) || defined(__aarch64__)
#define FUSED(x, y, sum) __builtin_fmaf(x, y, sum)
#else
#define FUSED(x, y, sum) ((x) * (y) + (sum))
#endif

INLINE vec load(const float *x) { return *(const vec *)x; }
INLINE void store(float *x, vec value) { *(vec *)x = value; }

/* DO(rows, ...) with a constant in place of `count`, which is from 1 to ROWS. */
#define BY_ROWS(count, DO, ...)             \
    switch (count) {                        \
    case 1: DO(1, ##__VA_ARGS__); break;    \
    case 2: DO(2, ##__VA_ARGS__); break;    \
    case 3: DO(3, ##__VA_ARGS__); break;    \
    case 4: DO(4, ##__VA_ARGS__); break;    \
    case 5: DO(5, ##__VA_ARGS__); break;    \
    case 6: DO(6, ##__VA_ARGS__); break;    \
    }

/* sum[rows][vectors] += x[rows][depth] times y[depth][vectors * LANES]. The number at (row, d) of x
   is x[row * row_stride + d * step]. Callers pass constants as `rows` and `vectors`, so that the
   sums stay in registers. */
INLINE void add_products(const int rows, const int vectors, const float *x, i64 row_stride,
                         i64 step, const float *y, i64 y_stride, i64 depth, vec sum[ROWS][WIDE]) {
    for (i64 d = 0; d < depth; d++) {
        vec column[WIDE];
        UNROLL for (int j = 0; j < vectors; j++) column[j] = load(y + d * y_stride + j * LANES);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vectors; j++)
                sum[i][j] = add_product(sum[i][j], x[i * row_stride + d * step], column[j]);
    }
}

/* exp(x) to 2e-7 of its value, for x from -60 to 88. Below, it is exp(-60): too little to change a
   sum that holds a 1, and not so little that products are denormal, which are slow. */
INLINE float exp_clamped(float x) {
    x = x < -60.0f ? -60.0f : x;
    const float rounding = 12582912.0f; /* 1.5 * 2^23: a sum this large has no fraction */
    float shifted = FUSED(x, 1.44269504f, rounding);
    float n = shifted - rounding;
    float r = FUSED(n, -1.42860677e-6f, FUSED(n, -0.693145752f, x));
    float p = 0.00829027183f;
    p = FUSED(p, r, 0.0418981598f);
    p = FUSED(p, r, 0.166676381f);
    p = FUSED(p, r, 0.499991478f);
    p = FUSED(p, r, 0.999999706f);
    p = FUSED(p, r, 1.0f);
    uint32_t bits; /* of 1.5 * 2^23 + n, whose last ones are those of n */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}
