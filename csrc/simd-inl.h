// Vector types: Vec<T> holds `lanes` numbers. Every operation acts on each lane by itself, fma rounds once where
// kFused says so, and load_n/store_n touch the first n < lanes elements of memory only, so that a tail runs through
// the same arithmetic as the rest. `stream` stores to an address aligned to the vector, past the caches where there is
// an instruction for it. kRegisters is the number of vector registers.
#define FASTGC_INLINE static inline __attribute__((always_inline))

// Orders non-temporal stores before whatever tells another thread of them.
FASTGC_INLINE void fence() {
#if FASTGC_TARGET_ID == FASTGC_AVX2_ID || FASTGC_TARGET_ID == FASTGC_AVX512_ID
    _mm_sfence();
#endif
}

template <class T>
struct Vec;

#if FASTGC_TARGET_ID == FASTGC_AVX512_ID

constexpr bool kFused = true;
constexpr int kRegisters = 32;

template <>
struct Vec<float> {
    static constexpr Index lanes = 16;
    __m512 v;
    FASTGC_INLINE __mmask16 first(Index n) { return static_cast<__mmask16>((1u << n) - 1); }
    FASTGC_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    FASTGC_INLINE Vec load_n(const float* p, Index n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    FASTGC_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
    FASTGC_INLINE void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
    FASTGC_INLINE void store_n(float* p, Vec a, Index n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
    FASTGC_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
};

template <>
struct Vec<double> {
    static constexpr Index lanes = 8;
    __m512d v;
    FASTGC_INLINE __mmask8 first(Index n) { return static_cast<__mmask8>((1u << n) - 1); }
    FASTGC_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
    FASTGC_INLINE Vec load_n(const double* p, Index n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
    FASTGC_INLINE void store(double* p, Vec a) { _mm512_storeu_pd(p, a.v); }
    FASTGC_INLINE void stream(double* p, Vec a) { _mm512_stream_pd(p, a.v); }
    FASTGC_INLINE void store_n(double* p, Vec a, Index n) { _mm512_mask_storeu_pd(p, first(n), a.v); }
    FASTGC_INLINE Vec set1(double x) { return {_mm512_set1_pd(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
};

#elif FASTGC_TARGET_ID == FASTGC_AVX2_ID

constexpr bool kFused = true;
constexpr int kRegisters = 16;

template <>
struct Vec<float> {
    static constexpr Index lanes = 8;
    __m256 v;
    FASTGC_INLINE __m256i first(Index n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    FASTGC_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    FASTGC_INLINE Vec load_n(const float* p, Index n) { return {_mm256_maskload_ps(p, first(n))}; }
    FASTGC_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
    FASTGC_INLINE void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
    FASTGC_INLINE void store_n(float* p, Vec a, Index n) { _mm256_maskstore_ps(p, first(n), a.v); }
    FASTGC_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
};

template <>
struct Vec<double> {
    static constexpr Index lanes = 4;
    __m256d v;
    FASTGC_INLINE __m256i first(Index n) {
        return _mm256_cmpgt_epi64(_mm256_set1_epi64x(static_cast<long long>(n)), _mm256_setr_epi64x(0, 1, 2, 3));
    }
    FASTGC_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    FASTGC_INLINE Vec load_n(const double* p, Index n) { return {_mm256_maskload_pd(p, first(n))}; }
    FASTGC_INLINE void store(double* p, Vec a) { _mm256_storeu_pd(p, a.v); }
    FASTGC_INLINE void stream(double* p, Vec a) { _mm256_stream_pd(p, a.v); }
    FASTGC_INLINE void store_n(double* p, Vec a, Index n) { _mm256_maskstore_pd(p, first(n), a.v); }
    FASTGC_INLINE Vec set1(double x) { return {_mm256_set1_pd(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
};

#elif FASTGC_TARGET_ID == FASTGC_NEON_ID

constexpr bool kFused = true;
constexpr int kRegisters = 32;

template <>
struct Vec<float> {
    static constexpr Index lanes = 4;
    float32x4_t v;
    FASTGC_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
    FASTGC_INLINE Vec load_n(const float* p, Index n) {
        float all[lanes] = {};
        for (Index i = 0; i < n; ++i) all[i] = p[i];
        return load(all);
    }
    FASTGC_INLINE void store(float* p, Vec a) { vst1q_f32(p, a.v); }
    FASTGC_INLINE void stream(float* p, Vec a) { store(p, a); }
    FASTGC_INLINE void store_n(float* p, Vec a, Index n) {
        float all[lanes];
        store(all, a);
        for (Index i = 0; i < n; ++i) p[i] = all[i];
    }
    FASTGC_INLINE Vec set1(float x) { return {vdupq_n_f32(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
};

template <>
struct Vec<double> {
    static constexpr Index lanes = 2;
    float64x2_t v;
    FASTGC_INLINE Vec load(const double* p) { return {vld1q_f64(p)}; }
    FASTGC_INLINE Vec load_n(const double* p, Index) { return {vsetq_lane_f64(*p, vdupq_n_f64(0), 0)}; }
    FASTGC_INLINE void store(double* p, Vec a) { vst1q_f64(p, a.v); }
    FASTGC_INLINE void stream(double* p, Vec a) { store(p, a); }
    FASTGC_INLINE void store_n(double* p, Vec a, Index) { *p = vgetq_lane_f64(a.v, 0); }
    FASTGC_INLINE Vec set1(double x) { return {vdupq_n_f64(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {vaddq_f64(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {vmulq_f64(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
};

#else  // portable: 16 bytes as a compiler vector, which every GCC and Clang target has or emulates

# if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
constexpr bool kFused = true;
# else
constexpr bool kFused = false;  // contraction is off, so a * b + c rounds twice, always
# endif
constexpr int kRegisters = 16;  // on x86-64

template <class T>
struct Vec {
    static constexpr Index lanes = 16 / sizeof(T);
    typedef T Raw __attribute__((vector_size(16)));
    Raw v;
    FASTGC_INLINE Vec load(const T* p) {
        Vec a;
        __builtin_memcpy(&a.v, p, 16);
        return a;
    }
    FASTGC_INLINE Vec load_n(const T* p, Index n) {
        Vec a = set1(0);
        for (Index i = 0; i < n; ++i) a.v[i] = p[i];
        return a;
    }
    FASTGC_INLINE void store(T* p, Vec a) { __builtin_memcpy(p, &a.v, 16); }
    FASTGC_INLINE void stream(T* p, Vec a) { store(p, a); }
    FASTGC_INLINE void store_n(T* p, Vec a, Index n) {
        for (Index i = 0; i < n; ++i) p[i] = a.v[i];
    }
    FASTGC_INLINE Vec set1(T x) {
        Vec a;
        for (Index i = 0; i < lanes; ++i) a.v[i] = x;
        return a;
    }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {a.v + b.v}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) {
        if constexpr (kFused) {
            for (Index i = 0; i < lanes; ++i) {
                if constexpr (sizeof(T) == 4)
                    c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
                else
                    c.v[i] = __builtin_fma(a.v[i], b.v[i], c.v[i]);
            }
            return c;
        } else {
            return {a.v * b.v + c.v};
        }
    }
};

#endif
