// Stands in for libcuda, libcublas and libnvrtc, to run the calls to them where
// there is no GPU: one file under three names. Memory is the processor's, which
// also runs the kernels. Whatever is not asked for as the encoder asks for it
// is refused. STAND_IN in the environment makes it a broken device:
//
//     absent     the driver finds no device
//     none       it counts none
//     closed     there is one that does not open
//     wrong      products are half of what they should be
//     fails:N    everything fails after N launches

#include "../../src/embed/bert/cuda/emulation.cpp"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

namespace {

const int INVALID = 1, NO_CONTEXT = 201, NO_DEVICE = 100, NO_IMAGE = 200, ILLEGAL_ADDRESS = 700;

// What handles are; the same in each of the three.
void *const SOMETHING = (void *)16;
thread_local void *current;
long launches;

bool is(const char *what) {
    const char *set = getenv("STAND_IN");
    return set && strcmp(set, what) == 0;
}

bool failed() {
    const char *set = getenv("STAND_IN");
    return set && strncmp(set, "fails:", 6) == 0 && launches > atol(set + 6);
}

// What nearly everything gives.
int state() {
    return failed() ? ILLEGAL_ADDRESS : current ? 0 : NO_CONTEXT;
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
    return is("absent") ? NO_DEVICE : 0;
}

int cuDeviceGetCount(int *count) {
    *count = is("none") ? 0 : 1;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : INVALID;
}

int cuDeviceGetName(char *name, int bytes, int) {
    snprintf(name, bytes, "Stand-in");
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    const int MAJOR = 75, MINOR = 76, MEMORY_POOLS = 115;
    *value = attribute == MAJOR ? 9 : attribute == MEMORY_POOLS;
    return attribute == MAJOR || attribute == MINOR || attribute == MEMORY_POOLS ? 0 : INVALID;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    const int OUT_OF_MEMORY = 2;
    *context = SOMETHING;
    return is("closed") ? OUT_OF_MEMORY : 0;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    return 0;
}

int cuCtxGetCurrent(void **context) {
    *context = current;
    return 0;
}

int cuCtxSetCurrent(void *context) {
    current = context;
    return 0;
}

int cuCtxSynchronize() {
    return state();
}

int cuStreamCreate(void **stream, unsigned) {
    *stream = SOMETHING;
    return state();
}

int cuStreamDestroy_v2(void *) {
    return state();
}

int cuStreamSynchronize(void *) {
    return state();
}

int cuMemAllocAsync(uint64_t *memory, size_t bytes, void *) {
    void *const got = bytes ? aligned_alloc(256, (bytes + 255) / 256 * 256) : nullptr;
    if (!got) {
        return INVALID;
    }
    // Numbers that are none.
    memset(got, 0xff, bytes);
    *memory = (uint64_t)got;
    return state();
}

int cuMemFreeAsync(uint64_t memory, void *) {
    free((void *)memory);
    return state();
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *) {
    memcpy((void *)to, from, bytes);
    return state();
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *) {
    memcpy(to, (const void *)from, bytes);
    return state();
}

int cuModuleLoadData(void **module, const void *image) {
    *module = SOMETHING;
    return memcmp(image, "\177ELF", 4) == 0 ? state() : NO_IMAGE;
}

int cuModuleUnload(void *) {
    return state();
}

int cuModuleGetFunction(void **function, void *, const char *name) {
    *function = strdup(name);
    return state();
}

int cuLaunchKernel(void *function, unsigned blocks, unsigned grid_y, unsigned grid_z, unsigned count, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *, void **pointers, void **extra) {
    launches++;
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared_bytes != 0 || extra) {
        return INVALID;
    }
    return state() != 0 ? state() : launch((const char *)function, blocks, count, pointers, 0);
}

int cuGetErrorName(int, const char **name) {
    *name = "CUDA_ERROR_STAND_IN";
    return 0;
}

int cuGetErrorString(int, const char **text) {
    *text = "as the stand-in was told";
    return 0;
}

int cublasCreate_v2(void **handle) {
    *handle = SOMETHING;
    return 0;
}

int cublasDestroy_v2(void *) {
    return 0;
}

int cublasSetStream_v2(void *, void *stream) {
    return stream == SOMETHING ? 0 : 7;
}

int cublasGemmEx(void *, int a_operation, int b_operation, int m, int n, int k, const float *alpha, const void *a,
                 int a_type, int a_stride, const void *b, int b_type, int b_stride, const float *beta, void *c,
                 int c_type, int c_stride, int compute_type, int algorithm) {
    const int PLAIN = 0, TRANSPOSED = 1, FLOATS = 0, HALVES = 14, FLOAT_SUMS = 68, ANY = -1;
    if (a_operation != TRANSPOSED || b_operation != PLAIN || a_stride != k || b_stride != k || c_stride != m ||
        a_type != b_type || (a_type != FLOATS && a_type != HALVES) || c_type != FLOATS || *alpha != 1 || *beta != 0 ||
        compute_type != FLOAT_SUMS || algorithm != ANY) {
        return 7;
    }
    multiply(m, n, k, a, b, (float *)c, a_type == HALVES);
    for (size_t i = 0; is("wrong") && i < (size_t)m * n; i++) {
        ((float *)c)[i] *= 0.5f;
    }
    return 0;
}

#ifndef NVRTC_IS_THERE

// The source is not compiled here; the options are looked at.
int nvrtcCreateProgram(void **program, const char *source, const char *, int, const char *const *, const char *const *) {
    *program = SOMETHING;
    return strstr(source, "__global__ void attend(") ? 0 : 3;
}

int nvrtcCompileProgram(void *, int count, const char *const *options) {
    bool architecture = false, head_size = false;
    for (int i = 0; i < count; i++) {
        architecture |= strcmp(options[i], "--gpu-architecture=sm_90") == 0;
        head_size |= strcmp(options[i], "--define-macro=HEAD_SIZE=32") == 0;
    }
    return architecture && head_size ? 0 : 5;
}

int nvrtcGetCUBINSize(void *, size_t *bytes) {
    *bytes = 4;
    return 0;
}

int nvrtcGetCUBIN(void *, char *image) {
    memcpy(image, "\177ELF", 4);
    return 0;
}

int nvrtcGetProgramLogSize(void *, size_t *bytes) {
    *bytes = 1;
    return 0;
}

int nvrtcGetProgramLog(void *, char *log) {
    *log = 0;
    return 0;
}

int nvrtcDestroyProgram(void **) {
    return 0;
}

#endif

}  // extern "C"
