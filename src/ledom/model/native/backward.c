/* The backward pass of causal attention in fp32 on a CPU; `attention.py` describes it. */

#include "vectors.h"

#define QUERIES 48 /* per block: eight register tiles */
#define KEYS 256   /* per block; its weights and their gradients stay in the processor's cache */
#define ROOM(COUNT) (((COUNT) + 31) / 32 * 32 + 16) /* rows at powers of two share cache lines */

/* Rows of numbers, such as one head's queries; rows may be apart. */
typedef struct {
    float *at;
    i64 stride;
} rows_of;

/* out[rows][columns] = x[rows][depth] times y[depth][columns], plus what `out` holds if `add`. x may
   be transposed, see `add_products`. */
static void multiply(const float *x, i64 row_stride, i64 step, rows_of y, i64 depth, i64 rows,
                     i64 columns, rows_of out, int add) {
#define TILE_OF(N, V)                                                                           \
    {                                                                                           \
        vec sum[ROWS][WIDE] = {{{0}}};                                                          \
        add_products(N, V, from, row_stride, step, y.at + column, y.stride, depth, sum);        \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < V; j++) {                 \
            float *to = out.at + (row + i) * out.stride + column + j * LANES;                   \
            store(to, add ? load(to) + sum[i][j] : sum[i][j]);                                  \
        }                                                                                       \
    }
    i64 whole = columns / LANES * LANES; /* columns that fill vectors */
    for (i64 column = 0; column < whole; column += TILE)
        for (i64 row = 0; row < rows; row += ROWS) {
            const float *from = x + row * row_stride;
            i64 count = rows - row < ROWS ? rows - row : ROWS;
            switch (whole - column < TILE ? (whole - column) / LANES : WIDE) {
            case 1: BY_ROWS(count, TILE_OF, 1) break;
            case 2: BY_ROWS(count, TILE_OF, 2) break;
#if WIDE > 2
            case 3: BY_ROWS(count, TILE_OF, 3) break;
            case 4: BY_ROWS(count, TILE_OF, 4) break;
#endif
            }
        }
    for (i64 row = 0; row < rows; row++)
        for (i64 column = whole; column < columns; column++) {
            float *to = out.at + row * out.stride + column, sum = 0;
            for (i64 d = 0; d < depth; d++)
                sum += x[row * row_stride + d * step] * y.at[d * y.stride + column];
            *to = add ? *to + sum : sum;
        }
}

static void transpose(rows_of x, i64 rows, i64 width, rows_of out) {
    for (i64 first = 0; first < rows; first += 16)
        for (i64 d = 0; d < width; d++)
            for (i64 row = first; row < first + 16; row++)
                out.at[d * out.stride + row] = row < rows ? x.at[row * x.stride + d] : 0;
}

static void copy(rows_of x, i64 rows, i64 width, float scale, float *out) {
    for (i64 row = 0; row < rows; row++)
        for (i64 d = 0; d < width; d++) out[row * width + d] = x.at[row * x.stride + d] * scale;
}

/* One head of one document. Blocks of queries are read from the last one on, because it sees all
   keys: it writes the gradients of keys and values, to which the others add. `scratch` has room for
   `backward_scratch` numbers. */
static void backward(rows_of g, rows_of q, rows_of k, rows_of v, rows_of out,
                     const float *normalizers, i64 normalizer_stride, rows_of of_q, rows_of of_k,
                     rows_of of_v, i64 length, i64 width, float scale, float *scratch) {
    i64 columns = ROOM(length);
    rows_of keys = {scratch, columns}, values = {scratch + width * columns, columns};
    float *queries = values.at + width * columns, *grads = queries + QUERIES * width;
    rows_of weights = {grads + QUERIES * width, ROOM(KEYS)};
    rows_of slopes = {weights.at + QUERIES * ROOM(KEYS), ROOM(KEYS)};
    rows_of query = {queries, width}, grad = {grads, width};
    transpose(k, length, width, keys);
    transpose(v, length, width, values);
    for (i64 first = (length - 1) / QUERIES * QUERIES; first >= 0; first -= QUERIES) {
        i64 end = first + QUERIES < length ? first + QUERIES : length, rows = end - first;
        int is_last = end == length;
        float share[QUERIES]; /* of each query's gradient that all its weights have in common */
        copy((rows_of){q.at + first * q.stride, q.stride}, rows, width, scale, queries);
        copy((rows_of){g.at + first * g.stride, g.stride}, rows, width, 1, grads);
        for (i64 i = 0; i < rows; i++) {
            const float *result = out.at + (first + i) * out.stride;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (i64 d = 0; d < width; d++) sum += grads[i * width + d] * result[d];
            share[i] = sum;
        }
        rows_of of_query = {of_q.at + first * of_q.stride, of_q.stride};
        for (i64 start = 0; start < end; start += KEYS) {
            i64 count = end - start < KEYS ? end - start : KEYS, whole = (count + 15) / 16 * 16;
            rows_of to_k = {of_k.at + start * of_k.stride, of_k.stride};
            rows_of to_v = {of_v.at + start * of_v.stride, of_v.stride};
            rows_of key = {k.at + start * k.stride, k.stride};
            multiply(queries, width, 1, (rows_of){keys.at + start, columns}, width, rows, whole,
                     weights, 0);
            multiply(grads, width, 1, (rows_of){values.at + start, columns}, width, rows, whole,
                     slopes, 0);
            for (i64 i = 0; i < rows; i++) {
                float *weight = weights.at + i * weights.stride, *slope = slopes.at + i * slopes.stride;
                i64 seen = first + i + 1 - start < count ? first + i + 1 - start : count;
                float normalizer = normalizers[(first + i) * normalizer_stride], common = share[i];
                seen = seen > 0 ? seen : 0;
#pragma omp simd
                for (i64 j = 0; j < seen; j++) {
                    weight[j] = exp_clamped(weight[j] - normalizer);
                    slope[j] = weight[j] * (slope[j] - common);
                }
                for (i64 j = seen; j < whole; j++) weight[j] = slope[j] = 0;
            }
            multiply(weights.at, 1, weights.stride, grad, rows, count, width, to_v, !is_last);
            multiply(slopes.at, 1, slopes.stride, query, rows, count, width, to_k, !is_last);
            multiply(slopes.at, slopes.stride, 1, key, count, rows, width, of_query, start > 0);
        }
        for (i64 i = 0; i < rows; i++)
            for (i64 d = 0; d < width; d++) of_query.at[i * of_query.stride + d] *= scale;
    }
}

int omp_get_thread_num(void); /* not every compiler has omp.h */

/* The addresses in `x` are those of g, q, k, v, out, of_q, of_k and of_v; `strides` holds two for
   each: between tokens, and between heads. Each thread has its `size` numbers of `scratch`. */
void attention_backward(float *const *x, const i64 *strides, const float *normalizers,
                        const i64 *boundaries, i64 documents, i64 heads, i64 width, float scale,
                        float *scratch, i64 size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (i64 job = 0; job < documents * heads; job++) {
        i64 start = boundaries[job / heads], length = boundaries[job / heads + 1] - start;
        i64 head = job % heads;
        rows_of of[8];
        for (int i = 0; i < 8; i++)
            of[i] = (rows_of){x[i] + start * strides[2 * i] + head * strides[2 * i + 1],
                              strides[2 * i]};
        backward(of[0], of[1], of[2], of[3], of[4], normalizers + start * heads + head, heads, of[5],
                 of[6], of[7], length, width, scale, scratch + omp_get_thread_num() * size);
    }
}

i64 backward_scratch(i64 longest, i64 width) {
    return 2 * width * ROOM(longest) + 2 * QUERIES * (width + ROOM(KEYS));
}
