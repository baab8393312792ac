// The encoder's kernels, in CUDA C: compiled by NVRTC when a device is opened
// (mod.rs says how), and as C++ for the processor by the tests.
//
// No headers, no shuffles, no intrinsics: what is used is what both compilers
// know, blocks, threads, __shared__ and __syncthreads. HEAD_SIZE, the numbers
// that an attention head works on, is given to the compiler, so that a thread
// can hold a head's query in registers; more than 128 have no place there.
//
// The rows of all texts of a batch lie one after another, without padding.
// Grids have one dimension. What the next product reads is written as floats
// or, where `halves` is not null, as bf16; kernels.rs says which.

typedef unsigned short bf16;
typedef unsigned long long Index;

// Threads of a block, but for attend's.
#define THREADS 128
// Threads of a block of attend, a query each.
#define QUERIES 64
// Keys and values in shared memory at once: 32 KiB of the 48 that a block may
// have, for the largest head.
#define KEYS 32
// Keys that share one step of the running softmax.
#define STEP 8
// Less than any score; its power of e is 0 beside that of any.
#define LOWEST -1e30f

// The nearest bf16, ties to even.
__device__ static bf16 nearest_bf16(float x) {
    union {
        float number;
        unsigned int bits;
    } of;
    of.number = x;
    return (bf16)((of.bits + 0x7fffu + ((of.bits >> 16) & 1u)) >> 16);
}

// The sum of what each thread of the block brings, for all of them.
__device__ static float sum_of_block(float x) {
    __shared__ float parts[THREADS];
    // Somebody may still be reading those of the sum before.
    __syncthreads();
    parts[threadIdx.x] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < THREADS; i++) {
        sum += parts[i];
    }
    return sum;
}

// Brings a row to mean 0 and variance 1, then scales and shifts it. Thread t
// has written columns t, t + THREADS and so on, and brings their sum.
__device__ static void normalise(float *row, bf16 *halves, const float *gain, const float *shift, int columns,
                                 float epsilon, float sum) {
    const float mean = sum_of_block(sum) / columns;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        const float apart = row[i] - mean;
        squares += apart * apart;
    }
    const float scale = 1.0f / sqrtf(sum_of_block(squares) / columns + epsilon);
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        row[i] = (row[i] - mean) * scale * gain[i] + shift[i];
        if (halves) {
            halves[i] = nearest_bf16(row[i]);
        }
    }
}

// Word and position embeddings, summed and normalised. A block is a token.
extern "C" __global__ void embed(const int *ids, const int *positions, const float *words, const float *places,
                                 const float *gain, const float *shift, float *states, bf16 *halves, int columns,
                                 float epsilon) {
    const Index at = (Index)blockIdx.x * columns;
    const float *word = words + (Index)ids[blockIdx.x] * columns;
    const float *place = places + (Index)positions[blockIdx.x] * columns;
    float *row = states + at;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        row[i] = word[i] + place[i];
        sum += row[i];
    }
    normalise(row, halves ? halves + at : halves, gain, shift, columns, epsilon, sum);
}

// states = norm(states + update + bias). A block is a token.
extern "C" __global__ void add_and_normalise(float *states, bf16 *halves, const float *update, const float *bias,
                                             const float *gain, const float *shift, int columns, float epsilon) {
    const Index at = (Index)blockIdx.x * columns;
    float *row = states + at;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        row[i] += update[at + i] + bias[i];
        sum += row[i];
    }
    normalise(row, halves ? halves + at : halves, gain, shift, columns, epsilon, sum);
}

// gelu(wide + bias), with the exact error function; in place, or to `halves`.
// A block is a token.
extern "C" __global__ void add_and_gelu(float *wide, bf16 *halves, const float *bias, int columns) {
    const Index row = (Index)blockIdx.x * columns;
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        const float x = wide[row + i] + bias[i];
        const float y = 0.5f * x * (1.0f + erff(x * 0.70710678f));
        if (halves) {
            halves[row + i] = nearest_bf16(y);
        } else {
            wide[row + i] = y;
        }
    }
}

// Every token of a text looks at every token of it. A row of `states` is a
// token's query, key and value, without their `bias`; the query comes divided
// by the square root of the head size. A block is one head of one tile; a tile
// is three numbers: first row of the text, its tokens, its first query.
//
// The softmax runs along: sum and total are relative to the largest score so
// far, and shrink when a larger one comes.
extern "C" __global__ void attend(const float *states, const float *bias, const int *tiles, float *context,
                                  bf16 *halves, int heads) {
    alignas(16) __shared__ float keys[KEYS][HEAD_SIZE];
    alignas(16) __shared__ float values[KEYS][HEAD_SIZE];
    const int *tile = tiles + 3 * (Index)(blockIdx.x / heads);
    const int start = tile[0], tokens = tile[1], query = tile[2] + (int)threadIdx.x;
    const int head = (int)(blockIdx.x % heads) * HEAD_SIZE;
    const int hidden = heads * HEAD_SIZE;
    // The last tile of a text has threads without a query: they load and wait
    // with the others.
    const bool own = query < tokens;

    float asked[HEAD_SIZE], sum[HEAD_SIZE];
    const float *row = states + (Index)(start + (own ? query : 0)) * 3 * hidden + head;
#pragma unroll
    for (int i = 0; i < HEAD_SIZE; i++) {
        asked[i] = row[i] + bias[head + i];
        sum[i] = 0.0f;
    }
    float largest = LOWEST, total = 0.0f;

    for (int first = 0; first < tokens; first += KEYS) {
        const int count = tokens - first < KEYS ? tokens - first : KEYS;
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * HEAD_SIZE; i += QUERIES) {
            const int key = i / HEAD_SIZE, column = head + i % HEAD_SIZE;
            // Zeros after the last: times a share of nothing they are nothing.
            float k = 0.0f, v = 0.0f;
            if (key < count) {
                const float *other = states + (Index)(start + first + key) * 3 * hidden + column;
                k = other[hidden] + bias[hidden + column];
                v = other[2 * hidden] + bias[2 * hidden + column];
            }
            keys[key][i % HEAD_SIZE] = k;
            values[key][i % HEAD_SIZE] = v;
        }
        __syncthreads();
        for (int step = 0; step < count; step += STEP) {
            float scores[STEP];
            float larger = largest;
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                float score = 0.0f;
#pragma unroll
                for (int i = 0; i < HEAD_SIZE; i++) {
                    score += asked[i] * keys[step + k][i];
                }
                scores[k] = step + k < count ? score : LOWEST;
                larger = scores[k] > larger ? scores[k] : larger;
            }
            const float shrink = expf(largest - larger);
            largest = larger;
            total *= shrink;
#pragma unroll
            for (int i = 0; i < HEAD_SIZE; i++) {
                sum[i] *= shrink;
            }
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                const float share = expf(scores[k] - larger);
                total += share;
#pragma unroll
                for (int i = 0; i < HEAD_SIZE; i++) {
                    sum[i] += share * values[step + k][i];
                }
            }
        }
    }
    if (own) {
        const Index at = (Index)(start + query) * hidden + head;
#pragma unroll
        for (int i = 0; i < HEAD_SIZE; i++) {
            if (halves) {
                halves[at + i] = nearest_bf16(sum[i] / total);
            } else {
                context[at + i] = sum[i] / total;
            }
        }
    }
}

// The mean of a text's states, or the first of them, brought to length 1. A
// block is a text: two numbers, its first row and its tokens.
extern "C" __global__ void pool(const float *states, const int *texts, float *vectors, int columns, int first_only) {
    const float *rows = states + (Index)texts[2 * blockIdx.x] * columns;
    const int count = first_only ? 1 : texts[2 * blockIdx.x + 1];
    float *vector = vectors + (Index)blockIdx.x * columns;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        // Not divided by their number: the length does away with it.
        float sum = 0.0f;
        for (int row = 0; row < count; row++) {
            sum += rows[(Index)row * columns + i];
        }
        vector[i] = sum;
        squares += sum * sum;
    }
    const float length = sqrtf(sum_of_block(squares));
    for (int i = threadIdx.x; i < columns; i += THREADS) {
        vector[i] /= length;
    }
}
