// Vector types: Vec<T> holds `lanes` numbers. Every operation acts on each lane by itself, fma rounds once where
// kFused says so, and load_n/store_n touch the first n < lanes elements of memory only, so that a tail runs through
// the same arithmetic as the rest. `stream` stores to an address aligned to the vector, past the caches where there is
// an instruction for it. Vec<float> also loads from and stores to Float16 and BFloat16, rounding to nearest even.
// kRegisters is the number of vector registers.
#define FASTGC_INLINE static inline __attribute__((always_inline))
#define FASTGC_INLINED __attribute__((always_inline))  // of lambdas

// Whether `stream` passes the caches.
constexpr bool kPassesCaches = FASTGC_TARGET_ID == FASTGC_AVX2_ID || FASTGC_TARGET_ID == FASTGC_AVX512_ID;

// Orders non-temporal stores before whatever tells another thread of them.
FASTGC_INLINE void fence() {
#if FASTGC_TARGET_ID == FASTGC_AVX2_ID || FASTGC_TARGET_ID == FASTGC_AVX512_ID
    _mm_sfence();
#endif
}

template <class T>
struct Vec;

// For types whose vectors have no masked load and store.
template <class W, class T>
FASTGC_INLINE W load_few(const T* p, Index n) {
    T all[W::lanes] = {};
    for (Index i = 0; i < n; ++i) all[i] = p[i];
    return W::load(all);
}
template <class W, class T>
FASTGC_INLINE void store_few(T* p, W a, Index n) {
    T all[W::lanes];
    W::store(all, a);
    for (Index i = 0; i < n; ++i) p[i] = all[i];
}

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
    FASTGC_INLINE Vec widen(__m256i bits, const Float16*) { return {_mm512_cvtph_ps(bits)}; }
    FASTGC_INLINE Vec widen(__m256i bits, const BFloat16*) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
    }
    FASTGC_INLINE __m256i round(Vec a, const Float16*) {
        return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // The processor's own rounding is missing from many, and takes denormal numbers for zeros.
    FASTGC_INLINE __mmask16 denormal(Vec a) { return _mm512_fpclass_ps_mask(a.v, 0x20); }
    FASTGC_INLINE __m256i round(Vec a, const BFloat16*) {
# if FASTGC_BF16
        if (__builtin_expect((denormal(a) | bfloat16_by_integers) == 0, 1)) return (__m256i)_mm512_cvtneps_pbh(a.v);
# endif
        return round_bits(a);
    }
    FASTGC_INLINE __m256i round_bits(Vec a) {  // see the portable one
        const __m512i bits = _mm512_castps_si512(a.v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __mmask16 number = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
        const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_add_epi32(bits, number, bits, up), 16));
    }
    template <class H>
    FASTGC_INLINE Vec load(const H* p) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
    }
    template <class H>
    FASTGC_INLINE Vec load_n(const H* p, Index n) {
        return widen(_mm256_maskz_loadu_epi16(first(n), p), p);
    }
    template <class H>
    FASTGC_INLINE void store(H* p, Vec a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round(a, p));
    }
    template <class H>
    FASTGC_INLINE void stream(H* p, Vec a) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), round(a, p));
    }
    template <class H>
    FASTGC_INLINE void store_n(H* p, Vec a, Index n) {
        _mm256_mask_storeu_epi16(p, first(n), round(a, p));
    }

    // Thirty-two bfloat16 as their even and their odd ones, as in AVX2 below.
    FASTGC_INLINE void load_pair(const BFloat16* p, Vec& even, Vec& odd) {
        const __m512i both = _mm512_loadu_si512(p);
        even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    }
    FASTGC_INLINE __m512i round_pair(Vec even, Vec odd) {
# if FASTGC_BF16
        if (__builtin_expect((denormal(even) | denormal(odd) | bfloat16_by_integers) == 0, 1)) {
            alignas(64) static constexpr std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                                    21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                                    11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
            return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v));
        }
# endif
        return round_bits(even, odd);
    }
    FASTGC_INLINE __m512i round_bits(Vec even, Vec odd) {
        const __m512i a = _mm512_castps_si512(even.v), b = _mm512_castps_si512(odd.v);
        const __m512i upper = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
        const __m512i lower = _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
        constexpr int and_or = 0xea;  // (upper & 1) | 0x7ffe
        const __m512i half = _mm512_ternarylogic_epi32(upper, _mm512_set1_epi16(1), _mm512_set1_epi16(0x7ffe), and_or);
        const __m512i carry = _mm512_srli_epi16(_mm512_avg_epu16(lower, half), 15);
        const __m512i size = _mm512_and_si512(upper, _mm512_set1_epi16(0x7fff));
        const __mmask32 number = _mm512_cmple_epi16_mask(size, _mm512_set1_epi16(0x7f80));
        return _mm512_mask_add_epi16(upper, number, upper, carry);
    }
    FASTGC_INLINE void store_pair(BFloat16* p, Vec even, Vec odd) { _mm512_storeu_si512(p, round_pair(even, odd)); }
    FASTGC_INLINE void stream_pair(BFloat16* p, Vec even, Vec odd) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), round_pair(even, odd));
    }

    // Thirty-two float16 as the first and the last sixteen, which a line is written with at once.
    FASTGC_INLINE void load_pair(const Float16* p, Vec& first, Vec& last) { first = load(p), last = load(p + lanes); }
    FASTGC_INLINE __m512i round_halves(Vec first, Vec last, const Float16* p) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(round(first, p)), round(last, p), 1);
    }
    FASTGC_INLINE void store_pair(Float16* p, Vec first, Vec last) {
        _mm512_storeu_si512(p, round_halves(first, last, p));
    }
    FASTGC_INLINE void stream_pair(Float16* p, Vec first, Vec last) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), round_halves(first, last, p));
    }
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
    FASTGC_INLINE void store_n(float* p, Vec a, Index n) {  // AMD's processors take 40 operations for a masked store
        __m128 rest = _mm256_castps256_ps128(a.v);
        if (n & 4) {
            _mm_storeu_ps(p, rest);
            rest = _mm256_extractf128_ps(a.v, 1);
            p += 4;
        }
        if (n & 2) {
            _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
            rest = _mm_movehl_ps(rest, rest);
            p += 2;
        }
        if (n & 1) _mm_store_ss(p, rest);
    }
    FASTGC_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    FASTGC_INLINE Vec widen(__m128i bits, const Float16*) { return {_mm256_cvtph_ps(bits)}; }
    FASTGC_INLINE Vec widen(__m128i bits, const BFloat16*) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
    }
    FASTGC_INLINE __m128i round(Vec a, const Float16*) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
    FASTGC_INLINE __m128i round(Vec a, const BFloat16*) {  // see round_bits()
        const __m256i bits = _mm256_castps_si256(a.v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
        const __m256i up = _mm256_andnot_si256(nan, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    }
    template <class H>
    FASTGC_INLINE Vec load(const H* p) {
        return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p);
    }
    template <class H>
    FASTGC_INLINE void store(H* p, Vec a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round(a, p));
    }
    template <class H>
    FASTGC_INLINE void stream(H* p, Vec a) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(p), round(a, p));
    }
    FASTGC_INLINE Vec load_n(const Float16* p, Index n) { return load_few<Vec>(p, n); }
    FASTGC_INLINE Vec load_n(const BFloat16* p, Index n) { return load_few<Vec>(p, n); }
    FASTGC_INLINE void store_n(Float16* p, Vec a, Index n) { store_few(p, a, n); }
    FASTGC_INLINE void store_n(BFloat16* p, Vec a, Index n) { store_few(p, a, n); }

    // Sixteen bfloat16 as their even and their odd ones, which takes half the instructions of two times eight.
    FASTGC_INLINE void load_pair(const BFloat16* p, Vec& even, Vec& odd) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        even.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        odd.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    }
    FASTGC_INLINE __m256i round_pair(Vec even, Vec odd) {
        const __m256i a = _mm256_castps_si256(even.v), b = _mm256_castps_si256(odd.v);
        const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
        const __m256i lower = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
        // Bit 16 of lower + 0x7fff + (upper & 1), which the average has as its bit 15; none for NaN, see round_bits().
        const __m256i half = _mm256_or_si256(_mm256_and_si256(upper, _mm256_set1_epi16(1)), _mm256_set1_epi16(0x7ffe));
        const __m256i carry = _mm256_srli_epi16(_mm256_avg_epu16(lower, half), 15);
        const __m256i size = _mm256_and_si256(upper, _mm256_set1_epi16(0x7fff));
        const __m256i nan = _mm256_cmpgt_epi16(size, _mm256_set1_epi16(0x7f80));
        return _mm256_add_epi16(upper, _mm256_andnot_si256(nan, carry));
    }
    FASTGC_INLINE void store_pair(BFloat16* p, Vec even, Vec odd) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_pair(even, odd));
    }
    FASTGC_INLINE void stream_pair(BFloat16* p, Vec even, Vec odd) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), round_pair(even, odd));
    }
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
    FASTGC_INLINE void store_n(double* p, Vec a, Index n) {
        __m128d rest = _mm256_castpd256_pd128(a.v);
        if (n & 2) {
            _mm_storeu_pd(p, rest);
            rest = _mm256_extractf128_pd(a.v, 1);
            p += 2;
        }
        if (n & 1) _mm_store_sd(p, rest);
    }
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
    FASTGC_INLINE Vec load_n(const float* p, Index n) { return load_few<Vec>(p, n); }
    FASTGC_INLINE void store(float* p, Vec a) { vst1q_f32(p, a.v); }
    template <class T>
    FASTGC_INLINE void stream(T* p, Vec a) {
        store(p, a);
    }
    FASTGC_INLINE void store_n(float* p, Vec a, Index n) { store_few(p, a, n); }
    FASTGC_INLINE Vec set1(float x) { return {vdupq_n_f32(x)}; }
    FASTGC_INLINE Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
    FASTGC_INLINE Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
    FASTGC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
    FASTGC_INLINE Vec load(const Float16* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)))}; }
    FASTGC_INLINE Vec load(const BFloat16* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16))}; }
    FASTGC_INLINE void store(Float16* p, Vec a) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
    FASTGC_INLINE void store(BFloat16* p, Vec a) {  // see round_bits()
        const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t up = vandq_u32(vceqq_f32(a.v, a.v), vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vst1_u16(&p->bits, vshrn_n_u32(vaddq_u32(bits, up), 16));
    }
    FASTGC_INLINE Vec load_n(const Float16* p, Index n) { return load_few<Vec>(p, n); }
    FASTGC_INLINE Vec load_n(const BFloat16* p, Index n) { return load_few<Vec>(p, n); }
    FASTGC_INLINE void store_n(Float16* p, Vec a, Index n) { store_few(p, a, n); }
    FASTGC_INLINE void store_n(BFloat16* p, Vec a, Index n) { store_few(p, a, n); }
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
constexpr int kRegisters = 8;  // so that it compiles in a third of the time that 16 take

// Half types, four at a time and without branches: bits of float32 in lanes of 32 bits, those of half types in their
// lower halves. Rounded to nearest, ties to even, as the instructions of the other sets do it. NaN keeps its sign and
// upper bits; it is quiet already, because it comes out of a multiplication.
typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Bits __attribute__((vector_size(16)));  // sizes without a sign, for which it makes no difference
typedef std::uint32_t Words __attribute__((vector_size(16)));
FASTGC_INLINE Bits upper(Bits bits, int by) { return (Bits)((Words)bits >> by); }
FASTGC_INLINE Bits round_bits(Floats x, const BFloat16*) {
    const Words bits = (Words)x;
    return (Bits)((x != x ? bits : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
FASTGC_INLINE Bits round_bits(Floats x, const Float16*) {
    const Bits sign = upper((Bits)x, 16) & 0x8000, size = (Bits)x & 0x7fffffff;
    const Bits nan = (upper(size, 13) & 0x3ff) | 0x7e00;
    const Bits normal = upper(size - 0x38000000 + 0xfff + (upper(size, 13) & 1), 13);  // may carry up to infinity
    // Below 2^-14 the spacing is 2^-24, that of float32 from 0.5 on: adding 0.5 rounds.
    const Bits small = (Bits)((Floats)size + 0.5f) - 0x3f000000;
    const Bits finite = size < 0x38800000 ? small : normal;
    const Bits number = size >= 0x47800000 ? Bits{} + 0x7c00 : finite;  // infinite from 65536 on
    return sign | (size > 0x7f800000 ? nan : number);
}
FASTGC_INLINE Floats widen(Bits x, const BFloat16*) { return (Floats)(x << 16); }
FASTGC_INLINE Floats widen(Bits x, const Float16*) {
    const Bits sign = (x & 0x8000) << 16, size = x & 0x7fff;
    const Bits small = (Bits)(__builtin_convertvector(size, Floats) * 0x1p-24f);
    const Bits finite = size < 0x400 ? small : (size << 13) + 0x38000000;
    const Bits number = size >= 0x7c00 ? (size << 13) | 0x7f800000 : finite;
    return (Floats)(sign | (size > 0x7c00 ? number | 0x400000 : number));
}

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
    template <class U>
    FASTGC_INLINE void stream(U* p, Vec a) {
        store(p, a);
    }
    FASTGC_INLINE void store_n(T* p, Vec a, Index n) {
        for (Index i = 0; i < n; ++i) p[i] = a.v[i];
    }
    template <class H>
    FASTGC_INLINE Vec load(const H* p) {
        typedef std::uint16_t Halves __attribute__((vector_size(8)));
        Halves halves;
        __builtin_memcpy(&halves, p, sizeof halves);
        return {widen(__builtin_convertvector(halves, Bits), p)};
    }
    template <class H>
    FASTGC_INLINE Vec load_n(const H* p, Index n) {
        return load_few<Vec>(p, n);
    }
    template <class H>
    FASTGC_INLINE void store(H* p, Vec a) {
        typedef std::uint16_t Halves __attribute__((vector_size(8)));
        const Halves halves = __builtin_convertvector(round_bits(a.v, p), Halves);
        __builtin_memcpy(p, &halves, sizeof halves);
    }
    template <class H>
    FASTGC_INLINE void store_n(H* p, Vec a, Index n) {
        store_few(p, a, n);
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

template <class T, T constant>
struct Constant {
    static constexpr T value = constant;
    constexpr operator T() const { return constant; }
};

// Transposes as many vectors as each has lanes.
#if FASTGC_TARGET_ID == FASTGC_AVX512_ID
FASTGC_INLINE void transpose(Vec<double>* rows) {
    __m512d a[8];
    for (int i = 0; i < 8; i += 2) {  // 2 x 2 numbers, then 2 x 2 pairs, then 2 x 2 halves
        a[i] = _mm512_unpacklo_pd(rows[i].v, rows[i + 1].v);
        a[i + 1] = _mm512_unpackhi_pd(rows[i].v, rows[i + 1].v);
    }
    __m512d b[8];
    for (int i = 0; i < 8; i += 4)
        for (int e = 0; e < 2; ++e) {
            b[i + e] = _mm512_shuffle_f64x2(a[i + e], a[i + e + 2], 0x88);
            b[i + e + 2] = _mm512_shuffle_f64x2(a[i + e], a[i + e + 2], 0xdd);
        }
    for (int e = 0; e < 4; ++e) {
        rows[e].v = _mm512_shuffle_f64x2(b[e], b[e + 4], 0x88);
        rows[e + 4].v = _mm512_shuffle_f64x2(b[e], b[e + 4], 0xdd);
    }
}
#elif FASTGC_TARGET_ID == FASTGC_AVX2_ID
FASTGC_INLINE void transpose(Vec<double>* rows) {
    const __m256d a = _mm256_unpacklo_pd(rows[0].v, rows[1].v), b = _mm256_unpackhi_pd(rows[0].v, rows[1].v);
    const __m256d c = _mm256_unpacklo_pd(rows[2].v, rows[3].v), d = _mm256_unpackhi_pd(rows[2].v, rows[3].v);
    rows[0].v = _mm256_permute2f128_pd(a, c, 0x20);
    rows[1].v = _mm256_permute2f128_pd(b, d, 0x20);
    rows[2].v = _mm256_permute2f128_pd(a, c, 0x31);
    rows[3].v = _mm256_permute2f128_pd(b, d, 0x31);
}
#else
FASTGC_INLINE void transpose(Vec<double>* rows) {
    const double upper = rows[0].v[1];
    rows[0].v[1] = rows[1].v[0];
    rows[1].v[0] = upper;
}
#endif

// V vectors of consecutive columns. Their lanes are in the order of memory, or those of a pair are its even and its odd
// columns where that is faster; what acts on each lane by itself need not know.
template <class In, class Out, int V>
constexpr bool kPaired = false;
#if FASTGC_TARGET_ID == FASTGC_AVX2_ID || FASTGC_TARGET_ID == FASTGC_AVX512_ID
template <int V>
constexpr bool kPaired<BFloat16, BFloat16, V> = V % 2 == 0;
#endif
#if FASTGC_TARGET_ID == FASTGC_AVX512_ID
template <int V>
constexpr bool kPaired<Float16, Float16, V> = V % 2 == 0;
#endif
// Calls body(i) for i = 0 … count - 1, all constants: arrays so indexed are in registers whatever a compiler unrolls.
template <class Body, int... i>
FASTGC_INLINE void each_of(const Body& body, std::integer_sequence<int, i...>) {
    (body(Constant<int, i>{}), ...);
}
template <int count, class Body>
FASTGC_INLINE void each(const Body& body) {
    each_of(body, std::make_integer_sequence<int, count>{});
}
template <bool paired, class W, class T, int count>
FASTGC_INLINE void load_all(const T* p, W (&a)[count]) {
    if constexpr (paired)
        for (int v = 0; v < count; v += 2) W::load_pair(p + v * W::lanes, a[v], a[v + 1]);
    else
        each<count>([&](auto v) FASTGC_INLINED { a[v] = W::load(p + v * W::lanes); });
}
template <bool paired, class W, class T, int count>
FASTGC_INLINE void store_all(T* p, const W (&a)[count]) {
    if constexpr (paired)
        for (int v = 0; v < count; v += 2) W::store_pair(p + v * W::lanes, a[v], a[v + 1]);
    else
        each<count>([&](auto v) FASTGC_INLINED { W::store(p + v * W::lanes, a[v]); });
}
template <bool paired, class W, class T, int count>
FASTGC_INLINE void stream_all(T* p, const W (&a)[count]) {
    if constexpr (paired)
        for (int v = 0; v < count; v += 2) W::stream_pair(p + v * W::lanes, a[v], a[v + 1]);
    else
        each<count>([&](auto v) FASTGC_INLINED { W::stream(p + v * W::lanes, a[v]); });
}
