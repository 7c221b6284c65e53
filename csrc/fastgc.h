/* The stable C interface of fastgc's kernels: C99, no Python, no exceptions.
 *
 * What this header declares keeps its meaning and its binary layout within one FASTGC_ABI_VERSION; functions are only
 * added. A program that was compiled against one version of the header can ask with fastgc_abi_version() what it runs
 * with. All functions may be called from any number of threads at once.
 */
#ifndef FASTGC_H
#define FASTGC_H

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

/* The FASTGC_ABI_VERSION that the library was built with. */
FASTGC_API int fastgc_abi_version(void);

/* The version of the package, as in "0.1.0". Never freed. */
FASTGC_API const char* fastgc_version(void);

#ifdef __cplusplus
}
#endif

#endif
