/* What a decoder's layer computes apart from attention, in fp32 on a CPU; `layers.py`
   describes each function.

   Each row goes through the same operations in the same order, whatever else is in the batch, so a
   text's scores do not depend on its batch. */

#include "vectors.h"

/* ---- rows, one by one ---- */

INLINE void normalize(const float *x, i64 rows, i64 width, const float *weight, float epsilon,
                      float *out) {
    for (i64 row = 0; row < rows; row++) {
        const float *from = x + row * width;
        float *to = out + row * width, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < width; i++) sum += from[i] * from[i];
        float scale = 1.0f / sqrtf(sum / width + epsilon);
        for (i64 i = 0; i < width; i++) to[i] = from[i] * scale * weight[i];
    }
}

/* The result may be written over the gate. */
INLINE void gate_row(const float *gate, const float *up, i64 width, float *out) {
#pragma omp simd
    for (i64 i = 0; i < width; i++) {
        float over = gate[i] < -88.0f ? INFINITY : 1.0f + exp_clamped(-gate[i]);
        out[i] = gate[i] / over * up[i];
    }
}

INLINE void rotate_row(float *x, const float *cosine, const float *sine, i64 heads, i64 width) {
    i64 half = width / 2;
    for (i64 head = 0; head < heads; head++) {
        float *a = x + head * width, *b = a + half;
#pragma omp simd
        for (i64 i = 0; i < half; i++) {
            float first = a[i] * cosine[i] - b[i] * sine[i];
            b[i] = b[i] * cosine[half + i] + a[i] * sine[half + i];
            a[i] = first;
        }
    }
}

void rms_norm(const float *x, const float *weight, float *out, i64 rows, i64 width, float epsilon,
              int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; row++)
        normalize(x + row * width, 1, width, weight, epsilon, out + row * width);
}

void silu_product(const float *x, float *out, i64 rows, i64 width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; row++)
        gate_row(x + row * 2 * width, x + (row * 2 + 1) * width, width, out + row * width);
}

void rotate(float *x, const float *cosine, const float *sine, i64 rows, i64 stride, i64 heads,
            i64 width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; row++)
        rotate_row(x + row * stride, cosine + row * width, sine + row * width, heads, width);
}

/* ---- products ---- */

i64 panel_width(void) { return TILE; }

/* A weight of which the number at (output, d) is weight[output * stride + d * step], in panels
   [depth][TILE]; the last one is filled up with zeros. */
void pack_weight(const float *weight, i64 stride, i64 step, i64 width, i64 depth, float *panels,
                 int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 column = 0; column < width; column += TILE) {
        float *panel = panels + column * depth;
        i64 columns = width - column < TILE ? width - column : TILE;
        for (i64 d = 0; d < depth; d++, panel += TILE) {
            for (i64 j = 0; j < columns; j++) panel[j] = weight[(column + j) * stride + d * step];
            for (i64 j = columns; j < TILE; j++) panel[j] = 0;
        }
    }
}

/* out[rows][columns] = x[rows][depth] times a panel [depth][TILE] of a weight, plus `bias` if there
   is one, plus what `out` holds if `add`. */
INLINE void multiply_tile(const int rows, const float *x, i64 x_stride, const float *panel,
                          const float *bias, i64 depth, i64 columns, float *out, i64 out_stride,
                          int add) {
    vec sum[ROWS][WIDE] = {{{0}}};
    add_products(rows, WIDE, x, x_stride, 1, panel, TILE, depth, sum);
    if (bias)
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] += load(bias + j * LANES);
    if (columns < TILE) { /* the weight's last panel is filled up with zeros */
        float whole[ROWS * TILE];
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < WIDE; j++) store(whole + i * TILE + j * LANES, sum[i][j]);
        for (int i = 0; i < rows; i++)
            for (i64 j = 0; j < columns; j++) {
                float *to = out + i * out_stride + j;
                *to = add ? *to + whole[i * TILE + j] : whole[i * TILE + j];
            }
        return;
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < WIDE; j++) {
            float *to = out + i * out_stride + j * LANES;
            store(to, add ? load(to) + sum[i][j] : sum[i][j]);
        }
}

/* out[rows][width] = x[rows][depth] times a packed weight; see `multiply_tile`. */
static void multiply(const float *x, i64 x_stride, i64 rows, const float *weight, const float *bias,
                     i64 depth, i64 width, float *out, i64 out_stride, int add) {
#define MULTIPLY(N) \
    multiply_tile(N, from, x_stride, panel, shift, depth, width - column, to, out_stride, add)
    for (i64 column = 0; column < width; column += TILE) {
        const float *panel = weight + column * depth, *shift = bias ? bias + column : 0;
        for (i64 row = 0; row < rows; row += ROWS) {
            const float *from = x + row * x_stride;
            float *to = out + row * out_stride + column;
            BY_ROWS(rows - row < ROWS ? rows - row : ROWS, MULTIPLY)
        }
    }
}

/* ---- changes ---- */

/* Of each array's bytes. An array of which one number changes has another hash, as no step maps two
   numbers to the same one. The shift is for changes of all numbers alike, such as doubling them:
   products alone move bits only upward, where they are lost. */
#define MIX(hash, x) (hash = (hash ^ (x)) * 16777619, hash ^= hash >> 15)
void hash_arrays(const char **arrays, const i64 *sizes, i64 count, uint32_t *hashes, int threads) {
    typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
    enum { SIDE_BY_SIDE = 4 }; /* because a product takes many cycles */
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (i64 i = 0; i < count; i++) {
        words mixed[SIDE_BY_SIDE] = {{0}}, last[SIDE_BY_SIDE] = {{0}};
        i64 done = 0;
        for (; done + (i64)sizeof mixed <= sizes[i]; done += sizeof mixed)
            UNROLL for (int j = 0; j < SIDE_BY_SIDE; j++)
                MIX(mixed[j], ((const words *)(arrays[i] + done))[j]);
        memcpy(last, arrays[i] + done, sizes[i] - done);
        uint32_t hash = 0;
        for (int j = 0; j < SIDE_BY_SIDE; j++) {
            MIX(mixed[j], last[j]);
            for (int lane = 0; lane < LANES; lane++) MIX(hash, mixed[j][lane]);
        }
        hashes[i] = hash;
    }
}

/* ---- parts of a layer ---- */

/* Each thread takes a share of the rows; `block` of them go through all steps at a time, so that
   they stay in the processor's cache. `scratch` has room for a block of each thread. */
#define FOR_EACH_BLOCK                                                            \
    _Pragma("omp parallel for num_threads(threads) if (threads > 1)")             \
    for (i64 part = 0; part < threads; part++)                                    \
        for (i64 first = rows * part / threads, end = rows * (part + 1) / threads, \
                 count; (count = end - first < block ? end - first : block) > 0; first += block)

void project(const float *x, i64 rows, i64 depth, const float *norm, float epsilon,
             const float *weight, const float *bias, i64 width, const float *cosine,
             const float *sine, i64 heads, i64 head_width, float *out, float *scratch, i64 block,
             int threads) {
    FOR_EACH_BLOCK {
        const float *from = x + first * depth;
        float *to = out + first * width;
        if (norm) {
            float *normalized = scratch + part * block * depth;
            normalize(from, count, depth, norm, epsilon, normalized);
            from = normalized;
        }
        multiply(from, depth, count, weight, bias, depth, width, to, width, 0);
        for (i64 row = first; cosine && row < first + count; row++)
            rotate_row(out + row * width, cosine + row * head_width, sine + row * head_width, heads,
                       head_width);
    }
}

void finish_layer(float *hidden, i64 rows, i64 width, const float *attended, i64 attended_width,
                  const float *out_weight, const float *out_bias, const float *norm, float epsilon,
                  const float *up, i64 inner, const float *down, float *scratch, i64 block,
                  int threads) {
    FOR_EACH_BLOCK {
        float *stream = hidden + first * width;
        float *normalized = scratch + part * block * (width + 2 * inner);
        float *gates = normalized + block * width;
        multiply(attended + first * attended_width, attended_width, count, out_weight, out_bias,
                 attended_width, width, stream, width, 1);
        normalize(stream, count, width, norm, epsilon, normalized);
        multiply(normalized, width, count, up, 0, width, 2 * inner, gates, 2 * inner, 0);
        for (i64 row = 0; row < count; row++) {
            float *gate = gates + row * 2 * inner;
            gate_row(gate, gate + inner, inner, gate);
        }
        multiply(gates, 2 * inner, count, down, 0, inner, width, stream, width, 1);
    }
}
