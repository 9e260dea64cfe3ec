/* Attention in fp32 on a CPU; `attention.py` describes each function.

   Each row, and each query of an attention, goes through the same operations in the same order,
   whatever else is in the batch, so a text's scores do not depend on its batch. The one exception:
   a prefix that a text shares is a span of keys of its own, which changes the rounding. */

#include "vectors.h"

#define PIECE 512      /* keys whose weights are computed at a time */
#define MOST_WIDTH 256 /* the widest head */

/* scores[rows][PIECE] = q[rows][width] times keys[width][vectors * LANES]. */
INLINE void scores_of(const int rows, const int vectors, const float *q, const float *keys,
                      i64 stride, i64 width, float *scores) {
    vec sum[ROWS][WIDE] = {{{0}}};
    add_products(rows, vectors, q, width, 1, keys, stride, width, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(scores + i * PIECE + j * LANES, sum[i][j]);
}

/* total[rows][width] = total * decay[rows] + weights[rows][PIECE] times values[count][width], for
   the first `vectors` * LANES columns. */
INLINE void add_columns(const int rows, const int vectors, const float *weights,
                        const float *values, i64 stride, i64 count, const float *decay,
                        float *total, i64 width) {
    vec sum[ROWS][WIDE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] = load(total + i * width + j * LANES) * decay[i];
    add_products(rows, vectors, weights, PIECE, 1, values, stride, count, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(total + i * width + j * LANES, sum[i][j]);
}

/* Turns a row's first `seen` scores into weights, in place, and overwrites the rest of the last
   vector. Updates the row's highest score and the sum of its weights; returns the factor by which
   earlier weights shrink because of a new highest score. */
INLINE float weigh(float *scores, i64 seen, float *highest, float *sum) {
    i64 whole = (seen + LANES - 1) / LANES * LANES;
    for (i64 i = seen; i < whole; i++) scores[i] = -INFINITY;
    float most = *highest, added = 0;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < whole; i++) most = scores[i] > most ? scores[i] : most;
#pragma omp simd reduction(+ : added)
    for (i64 i = 0; i < whole; i++) {
        scores[i] = exp_clamped(scores[i] - most);
        added += scores[i];
    }
    float decay = exp_clamped(*highest - most);
    *highest = most;
    *sum = *sum * decay + added;
    return decay;
}

/* Adds `count` keys and values to the running attention of `rows` rows; a row is one head of one
   query. Keys are [width, key_stride], values [count, value_stride]; row i sees the first seen[i]
   keys. Keys are read in whole vectors: up to LANES - 1 numbers past `count`. */
INLINE void add_keys(const int rows, const float *q, const float *keys, i64 key_stride,
                     const float *values, i64 value_stride, i64 count, const i64 *seen, i64 width,
                     float *highest, float *sum, float *total) {
    for (i64 first = 0; first < count; first += PIECE) {
        i64 n = count - first < PIECE ? count - first : PIECE;
        float scores[ROWS * PIECE], decay[ROWS];
        for (i64 tile = 0; tile < n; tile += TILE) {
            const float *at = keys + first + tile;
            switch (n - tile < TILE ? (n - tile + LANES - 1) / LANES : WIDE) {
            case 1: scores_of(rows, 1, q, at, key_stride, width, scores + tile); break;
            case 2: scores_of(rows, 2, q, at, key_stride, width, scores + tile); break;
#if WIDE > 2
            case 3: scores_of(rows, 3, q, at, key_stride, width, scores + tile); break;
            case 4: scores_of(rows, 4, q, at, key_stride, width, scores + tile); break;
#endif
            }
        }
        for (int i = 0; i < rows; i++) {
            i64 own = seen[i] - first < n ? seen[i] - first : n;
            decay[i] = own > 0 ? weigh(scores + i * PIECE, own, highest + i, sum + i) : 1;
            for (i64 key = own > 0 ? own : 0; key < n; key++) scores[i * PIECE + key] = 0;
        }
        i64 d = 0;
        const float *at = values + first * value_stride;
#if WIDE > 2
        for (; d + 4 * LANES <= width; d += 4 * LANES)
            add_columns(rows, 4, scores, at + d, value_stride, n, decay, total + d, width);
#endif
        for (; d + 2 * LANES <= width; d += 2 * LANES)
            add_columns(rows, 2, scores, at + d, value_stride, n, decay, total + d, width);
        for (; d < width; d += LANES)
            add_columns(rows, 1, scores, at + d, value_stride, n, decay, total + d, width);
    }
}

/* `add_keys` for any number of rows up to ROWS. */
static void add_any(i64 rows, const float *q, const float *keys, i64 key_stride,
                    const float *values, i64 value_stride, i64 count, const i64 *seen, i64 width,
                    float *highest, float *sum, float *total) {
#define ADD(N) add_keys(N, q, keys, key_stride, values, value_stride, count, seen, width, highest, sum, total)
    switch (rows) {
    case 1: ADD(1); break;
    case 2: ADD(2); break;
    case 3: ADD(3); break;
    case 4: ADD(4); break;
    case 5: ADD(5); break;
    case 6: ADD(6); break;
    }
}

void tree_attention(const float *q, i64 q_stride, const float *keys, i64 key_stride, const float *v,
                    i64 v_stride, float *out, i64 kv_heads, i64 group, i64 width, const i64 *tasks,
                    i64 num_tasks, const i64 *spans, const i64 *limits, float *normalizers,
                    int threads) {
    float scale = 1.0f / sqrtf(width);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (i64 job = 0; job < num_tasks * kv_heads; job++) {
        const i64 *task = tasks + job / kv_heads * 4;
        i64 head = job % kv_heads;
        const float *k = keys + head * width * key_stride;
        for (i64 first = task[0] * group; first < task[1] * group; first += ROWS) {
            i64 rows = task[1] * group - first < ROWS ? task[1] * group - first : ROWS;
            float scaled[ROWS * MOST_WIDTH], total[ROWS * MOST_WIDTH], highest[ROWS], sum[ROWS];
            i64 seen[ROWS];
            for (i64 i = 0; i < rows; i++) {
                i64 query = (first + i) / group, own = head * group + (first + i) % group;
                for (i64 d = 0; d < width; d++) {
                    scaled[i * width + d] = q[query * q_stride + own * width + d] * scale;
                    total[i * width + d] = 0;
                }
                highest[i] = -INFINITY;
                sum[i] = 0;
            }
            i64 end = limits[(first + rows - 1) / group];
            for (i64 span = task[2]; span < task[3]; span++) {
                i64 start = spans[2 * span], stop = spans[2 * span + 1];
                stop = stop < end ? stop : end;
                for (i64 i = 0; i < rows; i++) seen[i] = limits[(first + i) / group] - start;
                add_any(rows, scaled, k + start, key_stride, v + start * v_stride + head * width,
                        v_stride, stop - start, seen, width, highest, sum, total);
            }
            for (i64 i = 0; i < rows; i++) {
                i64 query = (first + i) / group, own = head * group + (first + i) % group;
                float *to = out + (query * kv_heads * group + own) * width, over = 1.0f / sum[i];
                for (i64 d = 0; d < width; d++) to[d] = total[i * width + d] * over;
                if (normalizers) normalizers[query * kv_heads * group + own] = highest[i] + logf(sum[i]);
            }
        }
    }
}

void transpose_keys(const float *k, i64 stride, float *out, i64 out_stride, i64 tokens, i64 columns,
                    int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 first = 0; first < tokens; first += 16) {
        i64 count = tokens - first < 16 ? tokens - first : 16;
        for (i64 column = 0; column < columns; column++)
            for (i64 i = 0; i < count; i++)
                out[column * out_stride + first + i] = k[(first + i) * stride + column];
    }
}

/* Starts to load `count` numbers that will be read soon. The processor cannot foresee where: each
   text has memory of its own. */
static inline void prefetch(const float *x, i64 count) {
    for (i64 i = 0; i < count; i += 16) __builtin_prefetch(x + i, 0, 1);
}

void cache_attention(const float *q, const float *k, const float *v, i64 q_stride, i64 k_stride,
                     i64 v_stride, const i64 *own, const i64 *about, i64 layer, float *out,
                     i64 texts, i64 kv_heads, i64 group, i64 width, int threads) {
    const i64 *rooms = about, *ages = about + texts, *lengths = about + 4 * texts;
    const i64 *known_keys = about + 2 * texts, *known_values = about + 3 * texts;
    float scale = 1.0f / sqrtf(width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 job = 0; job < texts * kv_heads; job++) {
        i64 text = job / kv_heads, head = job % kv_heads, room = rooms[text], age = ages[text];
        float *keys = (float *)own[text] + head * width * room;
        float *values = (float *)own[texts + text] + head * room * width;
        const float *key = k + text * k_stride + head * width;
        for (i64 d = 0; d < width; d++) keys[d * room + age] = key[d];
        memcpy(values + age * width, v + text * v_stride + head * width, sizeof(float) * width);
        i64 length = lengths[text], columns = (length + 15) / 16 * 16, at = layer * kv_heads + head;
        const float *read_keys = (const float *)known_keys[text] + at * width * columns;
        const float *read_values = (const float *)known_values[text] + at * width * length;
        prefetch(read_values, length * width);
        prefetch(keys, width * room);
        prefetch(values, age * width);
        for (i64 first = 0; first < group; first += ROWS) {
            i64 rows = group - first < ROWS ? group - first : ROWS;
            float scaled[ROWS * MOST_WIDTH], highest[ROWS], sum[ROWS];
            float *to = out + (job * group + first) * width;
            i64 all[ROWS];
            for (i64 i = 0; i < rows * width; i++) {
                scaled[i] = q[text * q_stride + (head * group + first) * width + i] * scale;
                to[i] = 0;
            }
            for (i64 i = 0; i < rows; i++) highest[i] = -INFINITY, sum[i] = 0, all[i] = INT64_MAX;
            add_any(rows, scaled, read_keys, columns, read_values, width, length, all, width, highest,
                    sum, to);
            add_any(rows, scaled, keys, room, values, width, age + 1, all, width, highest, sum, to);
            for (i64 i = 0; i < rows * width; i++) to[i] /= sum[i / width];
        }
    }
}
