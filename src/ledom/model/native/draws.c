/* What follows from logits: draws of tokens, and labels' log-probabilities. `draws.py` describes
   them. */

#include "vectors.h"

#define PARTS 1024 /* the most parts of a vocabulary */
#define PART 512   /* exponentials that are summed in fp32 */

INLINE float largest(const float *x, i64 count) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The first place at which the cumulative sum of `weights` exceeds `level`, else the last; the sum
   before that place is taken from `level`. */
static i64 place_of(const double *weights, i64 count, double *level) {
    i64 place = 0;
    for (; place < count - 1 && weights[place] <= *level; place++) *level -= weights[place];
    return place;
}

void draw(const float *logits, i64 rows, i64 vocabulary, float temperature, const double *levels,
          i64 *tokens, float *certainties, float *highest, int threads) {
    i64 part = vocabulary / PARTS + 1 > 64 ? vocabulary / PARTS + 1 : 64;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; row++) {
        const float *x = logits + row * vocabulary;
        float most = largest(x, vocabulary);
        double parts[PARTS], all = 0, plain = 0, total = 0;
        for (i64 first = 0; first < vocabulary; first += part) {
            i64 end = vocabulary - first < part ? vocabulary : first + part;
            float summed = 0, weight = 0, weight_plain = 0;
#pragma omp simd reduction(+ : summed, weight, weight_plain)
            for (i64 i = first; i < end; i++) {
                summed += x[i];
                weight_plain += exp_clamped(x[i] - most);
                weight += exp_clamped((x[i] - most) / temperature);
            }
            parts[first / part] = weight;
            all += summed, plain += weight_plain, total += weight;
        }
        certainties[row] = most + log(plain) - all / vocabulary - log(vocabulary);
        highest[row] = most / temperature;
        i64 token = 0;
        if (levels[row] < 0) {
            while (token < vocabulary - 1 && x[token] != most) token++;
        } else {
            double level = levels[row] * total, inside[vocabulary < part ? vocabulary : part];
            token = part * place_of(parts, (vocabulary + part - 1) / part, &level);
            i64 count = vocabulary - token < part ? vocabulary - token : part;
            for (i64 i = 0; i < count; i++)
                inside[i] = exp_clamped((x[token + i] - most) / temperature);
            token += place_of(inside, count, &level);
        }
        tokens[row] = token;
    }
}

/* log P of each row's label, from its logits. */
void label_logprobs(const float *logits, i64 rows, i64 vocabulary, const i64 *labels, float *out,
                    int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 row = 0; row < rows; row++) {
        const float *x = logits + row * vocabulary;
        float most = largest(x, vocabulary);
        double total = 0;
        for (i64 first = 0; first < vocabulary; first += PART) {
            i64 end = vocabulary - first < PART ? vocabulary : first + PART;
            float weight = 0;
#pragma omp simd reduction(+ : weight)
            for (i64 i = first; i < end; i++) weight += exp_clamped(x[i] - most);
            total += weight;
        }
        out[row] = x[labels[row]] - most - log(total);
    }
}
