/* Attention in fp32 on a CPU; `attention.py` describes each function.

   Each row, and each query of an attention, goes through the same operations in the same order,
   whatever else is in the batch. Which of its keys a text shares with others changes nothing either:
   weights are computed by position in the text (see `attend`). So a text's scores do not depend on
   its batch. */

#include "vectors.h"

#define PIECE 256      /* keys whose weights are computed at a time */
#define MOST_WIDTH 256 /* the widest head */
#define MOST_ROWS 96   /* that read a piece of keys one after another */
#define SCORES (PIECE + 16) /* from row to row; whole vectors are stored, up to 15 numbers too many */

/* Consecutive keys [width, key_stride] and values [count, value_stride] of a text. Keys are read in
   whole vectors: up to LANES - 1 numbers past `count`. */
typedef struct {
    const float *keys;
    i64 key_stride;
    const float *values;
    i64 value_stride, count;
} span;

/* scores[rows][SCORES] = q[rows][width] times keys[width][vectors * LANES]. */
INLINE void scores_of(const int rows, const int vectors, const float *q, const float *keys,
                      i64 stride, i64 width, float *scores) {
    vec sum[ROWS][WIDE] = {{{0}}};
    add_products(rows, vectors, q, width, 1, keys, stride, width, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(scores + i * SCORES + j * LANES, sum[i][j]);
}

/* scores[rows][SCORES] = q[rows][width] times the first `count` keys. */
INLINE void add_scores(const int rows, const float *q, const float *keys, i64 stride, i64 count,
                       i64 width, float *scores) {
    for (i64 tile = 0; tile < count; tile += TILE) {
        const float *at = keys + tile;
        switch (count - tile < TILE ? (count - tile + LANES - 1) / LANES : WIDE) {
        case 1: scores_of(rows, 1, q, at, stride, width, scores + tile); break;
        case 2: scores_of(rows, 2, q, at, stride, width, scores + tile); break;
#if WIDE > 2
        case 3: scores_of(rows, 3, q, at, stride, width, scores + tile); break;
        case 4: scores_of(rows, 4, q, at, stride, width, scores + tile); break;
#endif
        }
    }
}

/* total[rows][width] += weights[rows][SCORES] times values[count][width], for the first
   `vectors` * LANES columns. */
INLINE void add_columns(const int rows, const int vectors, const float *weights,
                        const float *values, i64 stride, i64 count, float *total, i64 width) {
    vec sum[ROWS][WIDE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] = load(total + i * width + j * LANES);
    add_products(rows, vectors, weights, SCORES, 1, values, stride, count, sum);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store(total + i * width + j * LANES, sum[i][j]);
}

/* A vector's first `bytes`; the rest is 0. */
INLINE vec part(const float *x, size_t bytes) {
    vec value = {0};
    memcpy(&value, x, bytes);
    return value;
}

/* `add_columns` for all columns. */
INLINE void add_values(const int rows, const float *weights, const float *values, i64 stride,
                       i64 count, float *total, i64 width) {
    i64 d = 0;
#if WIDE > 2
    for (; d + 4 * LANES <= width; d += 4 * LANES)
        add_columns(rows, 4, weights, values + d, stride, count, total + d, width);
#endif
    for (; d + 2 * LANES <= width; d += 2 * LANES)
        add_columns(rows, 2, weights, values + d, stride, count, total + d, width);
    for (; d + LANES <= width; d += LANES)
        add_columns(rows, 1, weights, values + d, stride, count, total + d, width);
    if (d == width) return;
    /* The last columns do not fill a vector, but are computed as one all the same. */
    vec sum[ROWS];
    size_t bytes = sizeof(float) * (width - d);
    UNROLL for (int i = 0; i < rows; i++) sum[i] = part(total + i * width + d, bytes);
    for (i64 key = 0; key < count; key++) {
        vec column = part(values + key * stride + d, bytes);
        UNROLL for (int i = 0; i < rows; i++)
            sum[i] = add_product(sum[i], weights[i * SCORES + key], column);
    }
    for (int i = 0; i < rows; i++) memcpy(total + i * width + d, &sum[i], bytes);
}

/* Turns a row's first `seen` scores into weights, in place, and overwrites the rest of the last
   vector. Updates the row's highest score and the sum of its weights; returns the factor by which
   earlier weights shrink because of a new highest score. All callers use one copy of the code, since
   the compiler may choose another order for the sum in each. */
static __attribute__((noinline)) float weigh(float *scores, i64 seen, float *highest, float *sum) {
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

/* Adds the piece of a text's keys that begins at `first` to the running attention of `rows` rows; a
   row is one head of one query, and sees the first seen[row] keys, the last row the most. `spans`
   are from the piece on; the first one begins at `begin`.

   Weights are computed for a piece at a time, wherever spans begin and end, and values are added one
   by one, so it makes no difference how the keys are divided into spans. */
INLINE void add_piece(const int rows, const float *q, const span *spans, i64 begin, i64 first,
                      const i64 *seen, i64 width, float *highest, float *sum, float *total) {
    i64 last = seen[rows - 1], end = last - first < PIECE ? last : first + PIECE, start = begin;
    float scores[ROWS * SCORES];
    for (const span *at = spans; start < end; start += at->count, at++) {
        i64 a = start < first ? first : start, b = start + at->count < end ? start + at->count : end;
        add_scores(rows, q, at->keys + a - start, at->key_stride, b - a, width, scores + a - first);
    }
    for (int i = 0; i < rows; i++) {
        i64 own = seen[i] < end ? seen[i] - first : end - first;
        float decay = own > 0 ? weigh(scores + i * SCORES, own, highest + i, sum + i) : 1;
        for (i64 d = 0; d < width; d++) total[i * width + d] *= decay;
        for (i64 key = own > 0 ? own : 0; key < end - first; key++) scores[i * SCORES + key] = 0;
    }
    start = begin;
    for (const span *at = spans; start < end; start += at->count, at++) {
        i64 a = start < first ? first : start, b = start + at->count < end ? start + at->count : end;
        add_values(rows, scores + a - first, at->values + (a - start) * at->value_stride,
                   at->value_stride, b - a, total, width);
    }
}

/* The attention of rows, of which the last one sees the most, to the keys of `spans`, which follow
   each other in a text. Writes each row's weighted sum of values to `total` [rows, width], and its
   highest score and sum of weights. All rows read a piece of keys while it is in the cache. */
static void attend(i64 rows, const float *q, const span *spans, const i64 *seen, i64 width,
                   float *highest, float *sum, float *total) {
    for (i64 i = 0; i < rows * width; i++) total[i] = 0;
    for (i64 i = 0; i < rows; i++) highest[i] = -INFINITY, sum[i] = 0;
    i64 begin = 0; /* of the piece's first span, in the text */
    for (i64 first = 0; first < seen[rows - 1]; first += PIECE) {
        for (; begin + spans->count <= first; spans++) begin += spans->count;
        for (i64 row = 0; row < rows; row += ROWS) {
            i64 count = rows - row < ROWS ? rows - row : ROWS;
            if (seen[row + count - 1] <= first) continue;
#define ADD(N)                                                                                \
    add_piece(N, q + row * width, spans, begin, first, seen + row, width, highest + row,       \
              sum + row, total + row * width)
            BY_ROWS(count, ADD)
        }
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
        i64 head = job % kv_heads, num_spans = task[3] - task[2], own = spans[2 * task[3] - 2];
        span read[num_spans];
        i64 before = 0; /* keys in the spans before the queries' own */
        for (i64 i = 0; i < num_spans; i++) {
            const i64 *ends = spans + 2 * (task[2] + i);
            read[i] = (span){keys + head * width * key_stride + ends[0], key_stride,
                             v + ends[0] * v_stride + head * width, v_stride, ends[1] - ends[0]};
            before += i < num_spans - 1 ? read[i].count : 0;
        }
        for (i64 first = task[0] * group; first < task[1] * group; first += MOST_ROWS) {
            i64 rows = task[1] * group - first < MOST_ROWS ? task[1] * group - first : MOST_ROWS;
            float scaled[MOST_ROWS * MOST_WIDTH], total[MOST_ROWS * MOST_WIDTH];
            float highest[MOST_ROWS], sum[MOST_ROWS];
            i64 seen[MOST_ROWS];
            for (i64 i = 0; i < rows; i++) {
                i64 query = (first + i) / group, at = head * group + (first + i) % group;
                for (i64 d = 0; d < width; d++)
                    scaled[i * width + d] = q[query * q_stride + at * width + d] * scale;
                seen[i] = before + limits[query] - own;
            }
            attend(rows, scaled, read, seen, width, highest, sum, total);
            for (i64 i = 0; i < rows; i++) {
                i64 query = (first + i) / group, at = head * group + (first + i) % group;
                float *to = out + (query * kv_heads * group + at) * width, over = 1.0f / sum[i];
                for (i64 d = 0; d < width; d++) to[d] = total[i * width + d] * over;
                if (normalizers) normalizers[query * kv_heads * group + at] = highest[i] + logf(sum[i]);
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
        const span read[] = {{read_keys, columns, read_values, width, length},
                             {keys, room, values, width, age + 1}};
        prefetch(read_values, length * width);
        prefetch(keys, width * room);
        prefetch(values, age * width);
        for (i64 first = 0; first < group; first += ROWS) {
            i64 rows = group - first < ROWS ? group - first : ROWS;
            float scaled[ROWS * MOST_WIDTH], highest[ROWS], sum[ROWS];
            float *to = out + (job * group + first) * width;
            i64 all[ROWS];
            for (i64 i = 0; i < rows * width; i++)
                scaled[i] = q[text * q_stride + (head * group + first) * width + i] * scale;
            for (i64 i = 0; i < rows; i++) all[i] = length + age + 1;
            attend(rows, scaled, read, all, width, highest, sum, to);
            for (i64 i = 0; i < rows * width; i++) to[i] *= 1.0f / sum[i / width];
        }
    }
}
