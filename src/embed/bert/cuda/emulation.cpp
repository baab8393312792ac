// Runs kernels.cu on the processor, for the tests: blocks one after another,
// the threads of a block as coroutines that change hands at __syncthreads.
// Between two of those each thread runs through on its own, from the first to
// the last or the other way round: with a __syncthreads missing, one of the two
// comes out wrong.

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
// One block at a time, so there is one of it.
#define __shared__ static

namespace {

struct Place {
    unsigned x;
};
Place threadIdx, blockIdx;

struct Thread {
    jmp_buf place;
    bool begun, done;
};
const size_t STACK_BYTES = 64 << 10;
std::vector<Thread> threads;
std::vector<char> stacks;
jmp_buf scheduler;
void (*body)(void **);
void **arguments;

// Goes back to the scheduler. Jumps, because changing contexts asks the system
// for the signal mask each time.
void pause() {
    if (_setjmp(threads[threadIdx.x].place) == 0) {
        _longjmp(scheduler, 1);
    }
}

void __syncthreads() {
    pause();
}

}  // namespace

#include "kernels.cu"

namespace {

// One thread of all blocks.
void run_thread() {
    for (;;) {
        body(arguments);
        threads[threadIdx.x].done = true;
        pause();
    }
}

// Lets a thread run to its next barrier, or to its end.
void resume(Thread &thread) {
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (thread.begun) {
        _longjmp(thread.place, 1);
    }
    thread.begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks.data() + threadIdx.x * STACK_BYTES;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, run_thread, 0);
    setcontext(&context);
}

// Calls a kernel as a driver does, with pointers to its arguments.
template <typename... T, size_t... I>
void call(void (*kernel)(T...), void **pointers, std::index_sequence<I...>) {
    kernel(*static_cast<T *>(pointers[I])...);
}

template <auto kernel, typename... T>
void spread(void (*)(T...), void **pointers) {
    call(kernel, pointers, std::index_sequence_for<T...>());
}

template <auto kernel>
void of(void **pointers) {
    spread<kernel>(kernel, pointers);
}

const struct {
    const char *name;
    void (*body)(void **);
} KERNELS[] = {
    {"embed", of<embed>}, {"add_and_normalise", of<add_and_normalise>},
    {"add_and_gelu", of<add_and_gelu>}, {"attend", of<attend>},
    {"pool", of<pool>},
};

// Whether all threads of the block came to the same barriers.
bool run_block(unsigned count, bool backwards) {
    for (Thread &thread : threads) {
        thread.done = false;
    }
    for (unsigned done = 0; done < count;) {
        done = 0;
        for (unsigned n = 0; n < count; n++) {
            threadIdx.x = backwards ? count - 1 - n : n;
            Thread &thread = threads[threadIdx.x];
            resume(thread);
            done += thread.done;
        }
        if (done != 0 && done != count) {
            return false;
        }
    }
    return true;
}

// The products of `a` with N vectors that lie one after another.
template <unsigned N>
void dots(const float *a, const float *b, size_t k, float *sums) {
    const unsigned LANES = 16;
    float lanes[N][LANES] = {};
    size_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        for (unsigned n = 0; n < N; n++) {
            for (unsigned lane = 0; lane < LANES; lane++) {
                lanes[n][lane] += a[i + lane] * b[n * k + i + lane];
            }
        }
    }
    for (unsigned n = 0; n < N; n++) {
        sums[n] = 0;
        for (float lane : lanes[n]) {
            sums[n] += lane;
        }
        for (size_t rest = i; rest < k; rest++) {
            sums[n] += a[rest] * b[n * k + rest];
        }
    }
}

std::vector<float> floats(const void *numbers, size_t count, bool halves) {
    std::vector<float> all(count);
    if (!halves) {
        memcpy(all.data(), numbers, count * sizeof(float));
        return all;
    }
    for (size_t i = 0; i < count; i++) {
        const unsigned bits = (unsigned)static_cast<const bf16 *>(numbers)[i] << 16;
        memcpy(&all[i], &bits, sizeof bits);
    }
    return all;
}

}  // namespace

// 0: done; 1: there is no such kernel; 2: threads of a block part ways.
extern "C" int launch(const char *name, unsigned blocks, unsigned count, void **pointers, int backwards) {
    for (const auto &kernel : KERNELS) {
        if (strcmp(kernel.name, name) != 0) {
            continue;
        }
        threads.assign(count, Thread());
        stacks.resize(count * STACK_BYTES);
        body = kernel.body;
        arguments = pointers;
        for (unsigned block = 0; block < blocks; block++) {
            blockIdx.x = backwards ? blocks - 1 - block : block;
            if (!run_block(count, backwards)) {
                return 2;
            }
        }
        return 0;
    }
    return 1;
}

// c = transposed a times b, column by column: c(i, j) is at i + j * m.
extern "C" void multiply(unsigned m, unsigned n, unsigned k, const void *a, const void *b, float *c, int halves) {
    const std::vector<float> left = floats(a, (size_t)k * m, halves), right = floats(b, (size_t)k * n, halves);
    for (size_t j = 0; j < n; j++) {
        size_t i = 0;
        for (; i + 4 <= m; i += 4) {
            dots<4>(&right[j * k], &left[i * k], k, &c[i + j * m]);
        }
        for (; i < m; i++) {
            dots<1>(&right[j * k], &left[i * k], k, &c[i + j * m]);
        }
    }
}
