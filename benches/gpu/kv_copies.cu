// Ways to move the KV of a prompt from one cache into another, on one GPU and between two: GB/s, the host's time to submit it, and how
// much a kernel that reads memory slows down meanwhile. The table in docs/disaggregation.md is made with it.
//
//   nvcc -O3 -std=c++17 -arch=sm_90 -o kv_copies kv_copies.cu -lcuda && ./kv_copies
//
// The caches are those of Llama-3-8B in blocks of 16 tokens, [num_blocks, 32 layers, 2, 8 heads, 16 tokens, 128] of 16 bits; the prompt
// has 256 blocks of 2 MiB in random places. Every way is checked: the destination is poisoned before and compared afterwards.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#define CHECK(call)                                                                        \
    do {                                                                                   \
        int code = int(call);                                                              \
        if (code != 0) {                                                                   \
            fprintf(stderr, "%s:%d: %s gives %d\n", __FILE__, __LINE__, #call, code);      \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

constexpr size_t NUM_BLOCKS = 1024, PROMPT_BLOCKS = 256, LAYERS = 32, HEADS = 8, HALF = 16 * 128 * 2;
constexpr size_t BLOCK = LAYERS * 2 * HEADS * HALF;
constexpr size_t READ_BYTES = size_t(2) << 30;

// `rows` times `width` bytes.
struct Piece {
    uint64_t from, to;
    uint32_t width, rows, from_pitch, to_pitch;
};

__global__ void fill(uint4* data, size_t n, uint32_t seed) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        uint32_t x = uint32_t(i) * 2654435761u ^ seed;
        data[i] = make_uint4(x, x * 3 + 1, x ^ 0x5bd1e995u, uint32_t(i >> 32) + x * 7);
    }
}

__global__ void compare(const Piece* pieces, int n, unsigned long long* wrong) {
    for (int p = blockIdx.x; p < n; p += gridDim.x) {
        Piece piece = pieces[p];
        for (uint32_t row = 0; row < piece.rows; ++row) {
            auto* from = (const uint4*)(piece.from + size_t(row) * piece.from_pitch);
            auto* to = (const uint4*)(piece.to + size_t(row) * piece.to_pitch);
            for (uint32_t i = threadIdx.x; i < piece.width / 16; i += blockDim.x) {
                uint4 a = from[i], b = to[i];
                if (a.x != b.x || a.y != b.y || a.z != b.z || a.w != b.w) atomicAdd(wrong, 1ull);
            }
        }
    }
}

// Copies pieces of one row, all of one length, a multiple or a part of the 128 KiB that a block of threads takes at a time.
__global__ void __launch_bounds__(1024) gather(const Piece* pieces, int n) {
    constexpr uint32_t TILE = 8 * 1024 * 16;
    size_t width = pieces[0].width, all = n * width;
    for (size_t at = size_t(blockIdx.x) * TILE; at < all; at += size_t(gridDim.x) * TILE) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            size_t byte = at + (threadIdx.x + i * 1024) * 16;
            if (byte < all) v[i] = __ldcs((const uint4*)(pieces[byte / width].from + byte % width));
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            size_t byte = at + (threadIdx.x + i * 1024) * 16;
            if (byte < all) __stcs((uint4*)(pieces[byte / width].to + byte % width), v[i]);
        }
    }
}

// Stands for a decode step: reads memory with all SMs.
__global__ void __launch_bounds__(256) read_memory(const uint4* data, size_t n, uint32_t* sink) {
    uint32_t sum = 0;
    size_t stride = size_t(gridDim.x) * blockDim.x;
    size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
    for (; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = __ldcs(data + i + k * stride);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    if (sum == 0x12345678) *sink = sum;
}

static std::string wanted;

struct Side {
    int gpu;
    uint8_t *cache, *read;
    uint32_t* sink;
    cudaStream_t compute;
};

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static Side make_side(int gpu, uint32_t seed) {
    Side side{gpu};
    CHECK(cudaSetDevice(gpu));
    CHECK(cudaMalloc(&side.cache, NUM_BLOCKS * BLOCK));
    CHECK(cudaMalloc(&side.read, READ_BYTES));
    CHECK(cudaMalloc(&side.sink, 4));
    CHECK(cudaStreamCreateWithFlags(&side.compute, cudaStreamNonBlocking));
    fill<<<1024, 256>>>((uint4*)side.cache, NUM_BLOCKS * BLOCK / 16, seed);
    fill<<<1024, 256>>>((uint4*)side.read, READ_BYTES / 16, seed + 1);
    CHECK(cudaDeviceSynchronize());
    return side;
}

static std::vector<float> read_times(const Side& side, int count) {
    CHECK(cudaSetDevice(side.gpu));
    std::vector<cudaEvent_t> marks(count + 1);
    for (auto& mark : marks) CHECK(cudaEventCreate(&mark));
    CHECK(cudaEventRecord(marks[0], side.compute));
    for (int i = 0; i < count; ++i) {
        read_memory<<<132 * 8, 256, 0, side.compute>>>((const uint4*)side.read, READ_BYTES / 16, side.sink);
        CHECK(cudaEventRecord(marks[i + 1], side.compute));
    }
    CHECK(cudaStreamSynchronize(side.compute));
    std::vector<float> times(count);
    for (int i = 0; i < count; ++i) CHECK(cudaEventElapsedTime(&times[i], marks[i], marks[i + 1]));
    for (auto& mark : marks) CHECK(cudaEventDestroy(mark));
    return times;
}

static double mean(const std::vector<float>& v) {
    double sum = 0;
    for (float x : v) sum += x;
    return sum / v.size();
}

struct Way {
    std::string name;
    std::vector<Piece> pieces;
    // Submits all pieces to `streams`, which are the reader's (or the writer's, if it pushes).
    std::function<void(const std::vector<Piece>&, const Piece* on_device, const std::vector<cudaStream_t>&)> submit;
    int num_streams = 1;
    bool pushes = false;
};

static void batch(const std::vector<Piece>& pieces, cudaStream_t stream, unsigned flags) {
    static thread_local std::vector<CUdeviceptr> to, from;
    static thread_local std::vector<size_t> sizes;
    to.clear(), from.clear(), sizes.clear();
    for (auto& p : pieces) to.push_back(p.to), from.push_back(p.from), sizes.push_back(p.width);
    CUmemcpyAttributes attributes{};
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    attributes.flags = flags;
    size_t first = 0;
    CHECK(cuMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes, &first, 1, stream));
}

static void strided(const Piece& p, cudaStream_t stream) {
    CHECK(cudaMemcpy2DAsync((void*)p.to, p.to_pitch, (const void*)p.from, p.from_pitch, p.width, p.rows, cudaMemcpyDefault, stream));
}

static void strided_peer(const Piece& p, cudaStream_t stream, CUcontext to, CUcontext from) {
    CUDA_MEMCPY3D_PEER copy{};
    copy.srcMemoryType = copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = p.from, copy.dstDevice = p.to;
    copy.srcContext = from, copy.dstContext = to;
    copy.srcPitch = p.from_pitch, copy.dstPitch = p.to_pitch;
    copy.srcHeight = copy.dstHeight = p.rows;
    copy.WidthInBytes = p.width, copy.Height = p.rows, copy.Depth = 1;
    CHECK(cuMemcpy3DPeerAsync(&copy, stream));
}

static void strided_batch(const std::vector<Piece>& pieces, cudaStream_t stream, unsigned flags) {
    static thread_local std::vector<CUDA_MEMCPY3D_BATCH_OP> copies;
    copies.clear();
    for (auto& p : pieces) {
        CUDA_MEMCPY3D_BATCH_OP copy{};
        copy.src.type = copy.dst.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
        copy.src.op.ptr.ptr = p.from, copy.src.op.ptr.rowLength = p.from_pitch, copy.src.op.ptr.layerHeight = p.rows;
        copy.dst.op.ptr.ptr = p.to, copy.dst.op.ptr.rowLength = p.to_pitch, copy.dst.op.ptr.layerHeight = p.rows;
        copy.extent.width = p.width, copy.extent.height = p.rows, copy.extent.depth = 1;
        copy.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        copy.flags = flags;
        copies.push_back(copy);
    }
    CHECK(cuMemcpy3DBatchAsync(copies.size(), copies.data(), 0, stream));
}

// Cuts each block of the prompt into pieces of `bytes`.
static std::vector<Piece> cut(const Side& from, const Side& to, const std::vector<int>& a, const std::vector<int>& b, size_t bytes) {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < PROMPT_BLOCKS; ++i)
        for (size_t at = 0; at < BLOCK; at += bytes)
            pieces.push_back({(uint64_t)from.cache + a[i] * BLOCK + at, (uint64_t)to.cache + b[i] * BLOCK + at, uint32_t(bytes), 1, uint32_t(bytes), uint32_t(bytes)});
    return pieces;
}

// The first heads of each block, from a cache with all heads into one that has only these: tensor parallel 1 to 2 and 1 to 8.
static std::vector<Piece> heads(const Side& from, const Side& to, const std::vector<int>& a, const std::vector<int>& b, size_t count) {
    std::vector<Piece> pieces;
    for (size_t i = 0; i < PROMPT_BLOCKS; ++i)
        pieces.push_back({(uint64_t)from.cache + a[i] * BLOCK, (uint64_t)to.cache + b[i] * BLOCK, uint32_t(count * HALF), uint32_t(2 * LAYERS), uint32_t(HEADS * HALF), uint32_t(count * HALF)});
    return pieces;
}

static std::vector<Piece> rows_of(const std::vector<Piece>& pieces) {
    std::vector<Piece> rows;
    for (auto& p : pieces)
        for (uint32_t r = 0; r < p.rows; ++r)
            rows.push_back({p.from + size_t(r) * p.from_pitch, p.to + size_t(r) * p.to_pitch, p.width, 1, p.width, p.width});
    return rows;
}

static void measure(const Way& way, const Side& from, const Side& to, bool two) {
    const Side& at = way.pushes ? from : to;
    CHECK(cudaSetDevice(at.gpu));
    int low, high;
    CHECK(cudaDeviceGetStreamPriorityRange(&low, &high));
    std::vector<cudaStream_t> streams(way.num_streams);
    for (auto& stream : streams) CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, low));
    Piece* on_device;
    unsigned long long* wrong;
    size_t n = way.pieces.size(), bytes = 0;
    for (auto& p : way.pieces) bytes += size_t(p.width) * p.rows;
    CHECK(cudaMalloc(&on_device, n * sizeof(Piece)));
    CHECK(cudaMalloc(&wrong, 8));
    CHECK(cudaMemcpy(on_device, way.pieces.data(), n * sizeof(Piece), cudaMemcpyHostToDevice));
    cudaEvent_t begin, forked, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaEventCreate(&forked));
    auto once = [&](double& host_s) {
        CHECK(cudaEventRecord(begin, streams[0]));
        for (size_t s = 1; s < streams.size(); ++s) CHECK(cudaStreamWaitEvent(streams[s], begin));
        double t = now();
        way.submit(way.pieces, on_device, streams);
        host_s = now() - t;
        for (size_t s = 1; s < streams.size(); ++s) {
            CHECK(cudaEventRecord(forked, streams[s]));
            CHECK(cudaStreamWaitEvent(streams[0], forked));
        }
        CHECK(cudaEventRecord(end, streams[0]));
    };
    // Correct first.
    CHECK(cudaSetDevice(to.gpu));
    CHECK(cudaMemset(to.cache, 0xff, NUM_BLOCKS * BLOCK));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaSetDevice(at.gpu));
    double host_s;
    once(host_s);
    CHECK(cudaStreamSynchronize(streams[0]));
    CHECK(cudaMemset(wrong, 0, 8));
    CHECK(cudaDeviceSynchronize());
    compare<<<264, 512>>>(on_device, int(n), wrong);
    CHECK(cudaDeviceSynchronize());
    unsigned long long num_wrong;
    CHECK(cudaMemcpy(&num_wrong, wrong, 8, cudaMemcpyDeviceToHost));
    // Alone.
    std::vector<float> device_ms, host_ms;
    for (int i = 0; i < 9; ++i) {
        once(host_s);
        CHECK(cudaStreamSynchronize(streams[0]));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        device_ms.push_back(ms), host_ms.push_back(host_s * 1e3);
    }
    std::sort(device_ms.begin(), device_ms.end());
    std::sort(host_ms.begin(), host_ms.end());
    // Beside kernels: copies all the time, one after the other.
    auto beside = [&](const Side& busy, double& rate) {
        double alone = mean(read_times(busy, 20));
        std::atomic<bool> stop{false}, began{false};
        std::atomic<size_t> copies{0};
        double took = 0;
        std::thread copier([&] {
            CHECK(cudaSetDevice(at.gpu));
            double start = now(), host;
            while (!stop) {
                once(host);
                CHECK(cudaStreamSynchronize(streams[0]));
                ++copies, began = true;
            }
            took = now() - start;
        });
        while (!began) std::this_thread::yield();
        double with = mean(read_times(busy, 60));
        stop = true;
        copier.join();
        rate = double(bytes) * copies / took / 1e9;
        return with / alone;
    };
    double rate_to, rate_from = 0, slow_to = beside(to, rate_to), slow_from = two ? beside(from, rate_from) : 0;
    printf("| %-44s | %6zu | %7.1f | %7.3f | %6.2f | %5.1f | %5.1f | %7.1f | %s |\n", way.name.c_str(), n, bytes / device_ms[4] / 1e6, device_ms[4], host_ms[4],
           (slow_to - 1) * 100, two ? (slow_from - 1) * 100 : 0.0, rate_to, num_wrong ? "WRONG" : "right");
    fflush(stdout);
    CHECK(cudaSetDevice(at.gpu));
    for (auto& stream : streams) CHECK(cudaStreamDestroy(stream));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaEventDestroy(forked));
    CHECK(cudaFree(on_device));
    CHECK(cudaFree(wrong));
}

static void table(const Side& from, const Side& to) {
    bool two = from.gpu != to.gpu;
    CHECK(cudaSetDevice(to.gpu));
    std::mt19937 random(7);
    std::vector<int> a(NUM_BLOCKS), b(NUM_BLOCKS);
    for (size_t i = 0; i < NUM_BLOCKS; ++i) a[i] = b[i] = int(i);
    std::shuffle(a.begin(), a.end(), random);
    std::shuffle(b.begin(), b.end(), random);
    CUcontext to_context, from_context;
    CHECK(cudaSetDevice(from.gpu));
    CHECK(cudaFree(0));
    CHECK(cuCtxGetCurrent(&from_context));
    CHECK(cudaSetDevice(to.gpu));
    CHECK(cudaFree(0));
    CHECK(cuCtxGetCurrent(&to_context));
    printf("\n%s\n\n", two ? "Between two GPUs" : "On one GPU");
    for (const Side* side : {&to, &from}) {
        double ms = mean(read_times(*side, 30));
        printf("a kernel that reads %.1f GiB on GPU %d alone: %.3f ms, %.0f GB/s\n", READ_BYTES / 1073741824.0, side->gpu, ms, READ_BYTES / ms / 1e6);
    }
    printf("\n| way | copies | GB/s | ms | host ms | reader slows, %% | writer slows, %% | GB/s meanwhile | bytes |\n|---|---|---|---|---|---|---|---|---|\n");
    auto dtod = [](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) {
        size_t i = 0;
        for (auto& p : pieces) CHECK(cuMemcpyDtoDAsync(p.to, p.from, p.width, streams[i++ % streams.size()]));
    };
    auto peer = [=](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) {
        for (auto& p : pieces) CHECK(cuMemcpyPeerAsync(p.to, to_context, p.from, from_context, p.width, streams[0]));
    };
    auto batched = [](unsigned flags) {
        return [=](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) { batch(pieces, streams[0], flags); };
    };
    auto rows = [](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) {
        for (auto& p : pieces) strided(p, streams[0]);
    };
    auto rows_peer = [=](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) {
        for (auto& p : pieces) strided_peer(p, streams[0], to_context, from_context);
    };
    auto strided_batched = [](unsigned flags) {
        return [=](const std::vector<Piece>& pieces, const Piece*, const std::vector<cudaStream_t>& streams) { strided_batch(pieces, streams[0], flags); };
    };
    auto gathered = [](int sms) {
        return [=](const std::vector<Piece>& pieces, const Piece* on_device, const std::vector<cudaStream_t>& streams) {
            gather<<<sms, 1024, 0, streams[0]>>>(on_device, int(pieces.size()));
        };
    };
    auto whole = cut(from, to, a, b, BLOCK), layer = cut(from, to, a, b, BLOCK / LAYERS), half = cut(from, to, a, b, BLOCK / LAYERS / 2);
    auto four = heads(from, to, a, b, 4), one = heads(from, to, a, b, 1);
    std::vector<Way> ways = {
        {"cuMemcpyDtoDAsync, 2 MiB", whole, dtod},
        {"cuMemcpyDtoDAsync, 2 MiB, 2 streams", whole, dtod, 2},
        {"cuMemcpyDtoDAsync, 2 MiB, 4 streams", whole, dtod, 4},
        {"cuMemcpyPeerAsync, 2 MiB", whole, peer},
        {"cuMemcpyDtoDAsync, 64 KiB", layer, dtod},
        {"cuMemcpyDtoDAsync, 64 KiB, 4 streams", layer, dtod, 4},
        {"cuMemcpyDtoDAsync, 32 KiB", half, dtod},
        {"cuMemcpyBatchAsync, 2 MiB", whole, batched(0)},
        {"cuMemcpyBatchAsync, 2 MiB, prefers overlap", whole, batched(1)},
        {"cuMemcpyBatchAsync, 64 KiB", layer, batched(0)},
        {"cuMemcpyBatchAsync, 64 KiB, prefers overlap", layer, batched(1)},
        {"cuMemcpyBatchAsync, 32 KiB", half, batched(0)},
        {"4 of 8 heads: cuMemcpy2DAsync, 64 x 16 KiB", four, rows},
        {"4 of 8 heads: cuMemcpy3DPeerAsync, 64 x 16 KiB", four, rows_peer},
        {"4 of 8 heads: cuMemcpy3DBatchAsync, 64 x 16 KiB", four, strided_batched(0)},
        {"4 of 8 heads: the same, prefers overlap", four, strided_batched(1)},
        {"4 of 8 heads: cuMemcpyBatchAsync, 16 KiB", rows_of(four), batched(0)},
        {"4 of 8 heads: gather kernel, 8 SMs", rows_of(four), gathered(8)},
        {"1 of 8 heads: cuMemcpy2DAsync, 64 x 4 KiB", one, rows},
        {"1 of 8 heads: cuMemcpyBatchAsync, 4 KiB", rows_of(one), batched(0)},
        {"gather kernel, 4 SMs", whole, gathered(4)},
        {"gather kernel, 8 SMs", whole, gathered(8)},
        {"gather kernel, 16 SMs", whole, gathered(16)},
        {"gather kernel, 32 SMs", whole, gathered(32)},
    };
    if (two) {
        ways.push_back({"pushed: cuMemcpyDtoDAsync, 2 MiB", whole, dtod, 1, true});
        ways.push_back({"pushed: cuMemcpyBatchAsync, 64 KiB", layer, batched(0), 1, true});
    }
    for (auto& way : ways)
        if (way.name.find(wanted) != std::string::npos) measure(way, from, to, two);
}

// With an argument, only the ways whose names have it.
int main(int argc, char** argv) {
    wanted = argc > 1 ? argv[1] : "";
    int count;
    CHECK(cudaGetDeviceCount(&count));
    cudaDeviceProp props;
    CHECK(cudaGetDeviceProperties(&props, 0));
    int driver;
    CHECK(cudaDriverGetVersion(&driver));
    printf("%d GPUs, %s, CUDA %d\n", count, props.name, driver);
    Side first = make_side(0, 1), second = make_side(0, 99);
    table(first, second);
    if (count < 2) return 0;
    CHECK(cudaFree(second.cache));
    Side other = make_side(1, 77);
    CHECK(cudaSetDevice(1));
    CHECK(cudaDeviceEnablePeerAccess(0, 0));
    CHECK(cudaSetDevice(0));
    CHECK(cudaDeviceEnablePeerAccess(1, 0));
    table(first, other);
    return 0;
}
