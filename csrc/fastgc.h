/* The stable C interface of fastgc's kernels: C99, no Python, and no exception leaves it.
 *
 * Gradient coding in three calls: workers make messages with fastgc_encode, the master finds weights for whoever has
 * answered with fastgc_decoding_weights (or fastgc_least_norm_weights, if more have than are needed), and applies them
 * with fastgc_decode. The first and the last are linear combinations of rows, which fastgc_lincomb does in general.
 *
 * Within one FASTGC_ABI_VERSION what is declared here keeps its meaning and its binary layout, and functions are only
 * added; fastgc_abi_version() says what a program runs with. All functions may be called by any number of threads at
 * once. Results have the same bits whatever the number of threads.
 *
 * Functions that can fail return FASTGC_OK or another fastgc_status, and on failure change nothing but the calling
 * thread's fastgc_error_message(). Arguments are checked: sizes, null pointers, alignment of elements to their size,
 * coefficients that are not finite, outputs that overlap. That pointers lead to as much memory as is said is the
 * caller's promise.
 *
 * A master that meets the same survivors again looks their weights up instead: fastgc_patterns, at the end.
 *
 * Matrices are row-major and without gaps. `threads` is the most that a call may use, and 0 means no limit; it is also
 * limited by OMP_NUM_THREADS and the CPUs that the process may run on, it is one in a child of fork(), and small calls
 * take fewer.
 */
#ifndef FASTGC_H
#define FASTGC_H

#include <stdint.h>

#if defined(_WIN32) && defined(FASTGC_BUILDING)
# define FASTGC_API __declspec(dllexport)
#elif defined(_WIN32)
# define FASTGC_API __declspec(dllimport)
#elif defined(__GNUC__)
# define FASTGC_API __attribute__((visibility("default")))
#else
# define FASTGC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FASTGC_ABI_VERSION 1

enum fastgc_status {
    FASTGC_OK = 0,
    FASTGC_INVALID_ARGUMENT = 1,
    FASTGC_NOT_DECODABLE = 2, /* the rows of a pattern do not have rank k: these survivors are not enough */
    FASTGC_OUT_OF_MEMORY = 3,
    FASTGC_INTERNAL_ERROR = 4
};

/* Types of elements: IEEE 754 binary32, binary64 and binary16, and bfloat16, the upper half of a binary32. */
enum fastgc_type { FASTGC_FLOAT32 = 1, FASTGC_FLOAT64 = 2, FASTGC_FLOAT16 = 3, FASTGC_BFLOAT16 = 4 };

/* The FASTGC_ABI_VERSION that the library was built with. */
FASTGC_API int fastgc_abi_version(void);

/* The version of the package, such as "0.1.0". */
FASTGC_API const char* fastgc_version(void);

/* What was wrong in the last call of this thread that failed, in one line: the argument, its value, what is allowed.
 * "" before the first. Valid until this thread's next call that fails. */
FASTGC_API const char* fastgc_error_message(void);

/* The instruction set in use: the one that the environment variable FASTGC_ISA names, else the fastest that works here.
 * NULL, with a message, if there is none of that name. The environment is read once. */
FASTGC_API const char* fastgc_instruction_set(void);

/* The instruction sets that work here, slowest first, from number 0; NULL beyond the last. */
FASTGC_API const char* fastgc_available_instruction_set(int number);

/* Threads that a large call without a limit would use now. */
FASTGC_API int fastgc_max_threads(void);

/* Linear combinations of rows: outputs[p] = sum over q of coefficients[p, q] inputs[q], for P outputs and Q inputs of
 * `length` elements, where outputs[p] is added to if `accumulate` is not 0. Coefficients are FASTGC_FLOAT32 or
 * FASTGC_FLOAT64, and are rounded once to the type computed in: binary64 for FASTGC_FLOAT64 inputs, else binary32.
 * Outputs are of the inputs' type; 16-bit types may also go out as FASTGC_FLOAT32, and FASTGC_FLOAT32 as either of
 * them, rounded once. No output may overlap another row. Rows may lie anywhere: inputs and outputs point to them. */
FASTGC_API int fastgc_lincomb(int coefficient_type, const void* coefficients, int64_t P, int64_t Q, int input_type,
                              const void* const* inputs, int output_type, void* const* outputs, int64_t length,
                              int accumulate, int threads);

/* The same for rows at equal distances, in bytes, from the first. */
FASTGC_API int fastgc_lincomb_strided(int coefficient_type, const void* coefficients, int64_t P, int64_t Q,
                                      int input_type, const void* inputs, int64_t input_stride, int output_type,
                                      void* outputs, int64_t output_stride, int64_t length, int accumulate,
                                      int threads);

/* Elements of a message for gradients of `length` cut into m blocks: length / m, rounded up. */
FASTGC_API int64_t fastgc_message_length(int64_t length, int64_t m);

/* A worker's message: the sum over its d gradients and their m blocks of coefficients[j, u] times block u of gradient
 * j, of fastgc_message_length(length, m) elements. What lies beyond the end of a gradient counts as zero. Types and
 * `accumulate` as in fastgc_lincomb. */
FASTGC_API int fastgc_encode(int coefficient_type, const void* coefficients, int64_t d, int64_t m, int input_type,
                             const void* const* gradients, int64_t length, int output_type, void* message,
                             int accumulate, int threads);

/* The messages of one group of workers that survive, and their weights, m x count. */
typedef struct fastgc_group {
    const double* weights;
    const void* const* messages;
    int64_t count;
} fastgc_group;

/* The gradient of `length` whose m blocks are the sums over the groups of weights times messages. Types as in
 * fastgc_lincomb. The groups' results are added in the order of a binary tree, so that order of groups is part of what
 * decides the bits. */
FASTGC_API int fastgc_decode(const fastgc_group* groups, int64_t group_count, int64_t m, int input_type, int64_t length,
                             int output_type, void* gradient, int threads);

/* weights[b] (k x k) = the inverse of rows patterns[b] (k different ones) of the n x k generator, for each of `batch`
 * patterns; its columns are in the order in which the pattern names rows. FASTGC_NOT_DECODABLE if a pattern's rows are
 * numerically singular: if, with columns scaled to length 1, the smallest singular value is at most
 * 64 k 2^-52 times the largest. */
FASTGC_API int fastgc_decoding_weights(const double* generator, int64_t n, int64_t k, const int64_t* patterns,
                                       int64_t batch, double* weights, int threads);

/* weights[b] (m x q) = the shortest A with A times rows patterns[b] (q >= k different ones) of the generator = target,
 * which is m x k; a null pointer stands for the identity, m = k. Otherwise as fastgc_decoding_weights. */
FASTGC_API int fastgc_least_norm_weights(const double* generator, int64_t n, int64_t k, const int64_t* patterns,
                                         int64_t batch, int64_t q, const double* target, int64_t m, double* weights,
                                         int threads);

/* A cache of weights by survivor pattern, for a generator and a target as in fastgc_least_norm_weights, of which it has
 * copies. It holds at most `capacity` patterns; one more drops the least recently used. A pattern of q survivors takes
 * 8 (m q + n / 64) bytes, rounded up, and some 70 more.
 *
 * Survivors are a bit mask of (n + 63) / 64 words: row i of the generator is bit i % 64, counted from the lowest, of
 * word i / 64. Bits of the last word beyond row n - 1 are 0.
 *
 * It has a lock: a child of fork() may use it only if no thread of its parent was using it then. */
typedef struct fastgc_patterns fastgc_patterns;

/* Sets *patterns to a new cache, which holds nothing. With a target, n <= 512 and 3 (m + n - k) <= 2 k it makes a
 * table, of up to three times the generator's size and in up to 0.1 s, with which weights are found from the rows that
 * are missing. */
FASTGC_API int fastgc_patterns_create(const double* generator, int64_t n, int64_t k, const double* target, int64_t m,
                                      int64_t capacity, fastgc_patterns** patterns);

/* Frees a cache that no other thread is using; a null pointer is none. */
FASTGC_API void fastgc_patterns_destroy(fastgc_patterns* patterns);

/* weights (m x q) of the q survivors, columns in increasing order: a copy, which stays as it is whatever the cache
 * drops later. Found and kept, if they are not held. The bits are those of fastgc_least_norm_weights, or of
 * fastgc_decoding_weights where q = k and no target was given; with such a table they may differ from
 * these in rounding. FASTGC_NOT_DECODABLE if the
 * survivors' rows do not have rank k, also where they are fewer than k. */
FASTGC_API int fastgc_patterns_weights(fastgc_patterns* patterns, const uint64_t* survivors, int64_t q,
                                       double* weights);

/* Finds the weights of `count` sets of survivors ahead of need: their masks one after the other, at most `capacity` of
 * them, of any sizes. They become the most recently used, in this order. FASTGC_NOT_DECODABLE if one of them is not,
 * and then none is added. */
FASTGC_API int fastgc_patterns_precompute(fastgc_patterns* patterns, const uint64_t* survivors, int64_t count,
                                          int threads);

/* The same for all sets of q survivors, at most `capacity` of them. Those that do not have rank k are passed over. */
FASTGC_API int fastgc_patterns_precompute_all(fastgc_patterns* patterns, int64_t q, int threads);

/* Patterns held; calls of fastgc_patterns_weights that found theirs held, and that had to find and keep them. */
FASTGC_API int64_t fastgc_patterns_size(const fastgc_patterns* patterns);
FASTGC_API int64_t fastgc_patterns_hits(const fastgc_patterns* patterns);
FASTGC_API int64_t fastgc_patterns_misses(const fastgc_patterns* patterns);

#ifdef __cplusplus
}
#endif

#endif
