// The arithmetic of the forward pass between matrix products, on a GPU.
//
// What crate::cpu does on a CPU: activations are float16 in memory, and every sum, softmax, norm
// and activation runs in float32. A row never depends on the rows beside it. Compiled to PTX by
// build.rs; launched by launch.rs, which checks shapes.

#include <cuda_fp16.h>

typedef unsigned int u32;

// The sum of one value per thread of a block, known to all threads. `shared` has 32 floats.
__device__ float block_sum(float value, float* shared) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    value = 0.0f;
    for (u32 i = 0; i < warps; i++) value += shared[i];
    return value;
}

// out[row] = words[ids[row]] + positions[at[row]] + types[kinds[row]]; tables may be null.
extern "C" __global__ void embed(half* out, const half* words, const half* positions, const half* types,
                                 const u32* ids, const u32* at, const u32* kinds, u32 width) {
    const size_t row = blockIdx.x;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = __half2float(words[(size_t)ids[row] * width + i]);
        if (types) sum += __half2float(types[(size_t)kinds[row] * width + i]);
        if (positions) sum += __half2float(positions[(size_t)at[row] * width + i]);
        out[row * width + i] = __float2half(sum);
    }
}

__device__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// x = activation(x + bias), in place: 0 none, 1 GELU, 2 tanh. `bias` may be null.
extern "C" __global__ void bias_activation(half* x, const float* bias, u32 width, u32 activation, size_t count) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float value = __half2float(x[i]);
    if (bias) value += bias[i % width];
    if (activation == 1) value = gelu(value);
    if (activation == 2) value = tanhf(value);
    x[i] = __float2half(value);
}

// The left half of a row times GELU of the right one.
extern "C" __global__ void gate(half* out, const half* x, u32 width, size_t count) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const half* row = x + i / width * 2 * width + i % width;
    out[i] = __float2half(__half2float(row[0]) * gelu(__half2float(row[width])));
}

// Layer norm of x (+ residual, which may be null), one block per row.
extern "C" __global__ void add_layer_norm(half* out, const half* x, const half* residual, const float* gamma,
                                          const float* beta, float eps, u32 width) {
    extern __shared__ float values[];
    __shared__ float sums[32];
    const size_t start = (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float value = __half2float(x[start + i]);
        if (residual) value += __half2float(residual[start + i]);
        values[i] = value;
        sum += value;
    }
    const float mean = block_sum(sum, sums) / width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float centred = values[i] - mean;
        squares += centred * centred;
    }
    const float scale = rsqrtf(block_sum(squares, sums) / width + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        out[start + i] = __float2half((values[i] - mean) * scale * gamma[i] + beta[i]);
}

// Turns the queries and keys of qkv (rows of 3 * heads * width) to their positions; one block per row.
extern "C" __global__ void rotate(half* out, const half* qkv, const u32* at, const float* cosine, const float* sine,
                                  u32 heads, u32 width) {
    const u32 pairs = width / 2, hidden = heads * width;
    const size_t start = (size_t)blockIdx.x * 3 * hidden;
    const float* cosines = cosine + (size_t)at[blockIdx.x] * pairs;
    const float* sines = sine + (size_t)at[blockIdx.x] * pairs;
    for (u32 i = threadIdx.x; i < 2 * heads * pairs; i += blockDim.x) {
        const size_t first = start + i / pairs * width + i % pairs;
        const float a = __half2float(qkv[first]), b = __half2float(qkv[first + pairs]);
        const float c = cosines[i % pairs], s = sines[i % pairs];
        out[first] = __float2half(a * c - b * s);
        out[first + pairs] = __float2half(b * c + a * s);
    }
    for (u32 i = threadIdx.x; i < hidden; i += blockDim.x) out[start + 2 * hidden + i] = qkv[start + 2 * hidden + i];
}

// softmax(q kT / sqrt(WIDTH)) v of each text by itself, without ever storing scores. A block takes
// QUERIES rows of one text and one head; a thread has one query, and its running maximum, sum and
// values in registers (online softmax: Milakov & Gimelshein 2018). Keys and values pass through
// shared memory. `tiles` has per block: first query row, first row of the text, its end.
#define QUERIES 128
#define KEYS 32
template <int WIDTH>
__device__ void attend(half* out, const half* qkv, const u32* tiles, u32 heads, float scale) {
    __shared__ half keys[KEYS][WIDTH], values[KEYS][WIDTH];
    const u32 hidden = heads * WIDTH, head = blockIdx.y;
    const u32 first = tiles[3 * blockIdx.x], begin = tiles[3 * blockIdx.x + 1], end = tiles[3 * blockIdx.x + 2];
    const u32 row = first + threadIdx.x;
    const bool mine = row < end;
    const size_t stride = 3 * (size_t)hidden;
    float query[WIDTH], sums[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
        // Scaled before the product, so that no score leaves the range.
        query[i] = mine ? __half2float(qkv[row * stride + head * WIDTH + i]) * scale : 0.0f;
        sums[i] = 0.0f;
    }
    float largest = -INFINITY, total = 0.0f;
    for (u32 from = begin; from < end; from += KEYS) {
        const u32 here = min((u32)KEYS, end - from);
        __syncthreads();
        for (u32 i = threadIdx.x; i < here * WIDTH; i += QUERIES) {
            const half* source = qkv + (from + i / WIDTH) * stride + head * WIDTH + i % WIDTH;
            keys[i / WIDTH][i % WIDTH] = source[hidden];
            values[i / WIDTH][i % WIDTH] = source[2 * hidden];
        }
        __syncthreads();
        for (u32 key = 0; key < here; key++) {
            float score = 0.0f;
            for (int i = 0; i < WIDTH; i++) score += query[i] * __half2float(keys[key][i]);
            if (score > largest) {
                const float smaller = expf(largest - score);
                for (int i = 0; i < WIDTH; i++) sums[i] *= smaller;
                total *= smaller;
                largest = score;
            }
            const float weight = expf(score - largest);
            total += weight;
            for (int i = 0; i < WIDTH; i++) sums[i] += weight * __half2float(values[key][i]);
        }
    }
    if (mine)
        for (int i = 0; i < WIDTH; i++) out[(size_t)row * hidden + head * WIDTH + i] = __float2half(sums[i] / total);
}

#define ATTENTION(WIDTH)                                                                                              \
    extern "C" __global__ void __launch_bounds__(QUERIES)                                                             \
        attention_##WIDTH(half* out, const half* qkv, const u32* tiles, u32 heads, float scale) {                     \
        attend<WIDTH>(out, qkv, tiles, heads, scale);                                                                 \
    }
ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)

// The mean of the rows of each text, or the first one; one block per text, float32 out.
extern "C" __global__ void pool(float* out, const half* x, const u32* bounds, u32 width, u32 mean) {
    const u32 begin = bounds[blockIdx.x], end = mean ? bounds[blockIdx.x + 1] : begin + 1;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 row = begin; row < end; row++) sum += __half2float(x[(size_t)row * width + i]);
        out[(size_t)blockIdx.x * width + i] = sum / (end - begin);
    }
}
