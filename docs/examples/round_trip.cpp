// The coded round trip of round_trip_numpy.py in C++; docs/native.md says how it is compiled.
#include <cstdio>
#include <exception>
#include <fastgc.hpp>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t workers = 4, partitions = 4, reduction = 2, length = 10, block = length / reduction;

template <class Number>
void print(const std::string& name, const Number* numbers, std::int64_t count) {
    std::printf("%s:", name.c_str());
    for (std::int64_t i = 0; i < count; ++i) std::printf(" %.5f", static_cast<double>(numbers[i]));
    std::printf("\n");
}

void round_trip() {
    // Worker i sends block 0 + (i + 1) times block 1 of the sum: it has a coefficient for every block of every gradient.
    std::vector<double> generator, encoding;
    for (std::int64_t i = 0; i < workers; ++i) {
        generator.insert(generator.end(), {1.0, static_cast<double>(i) + 1.0});
        for (std::int64_t j = 0; j < partitions; ++j)
            encoding.insert(encoding.end(), {1.0, static_cast<double>(i) + 1.0});
    }

    std::vector<float> gradients, sum(length);
    for (std::int64_t j = 0; j < partitions; ++j)
        for (std::int64_t x = 0; x < length; ++x) {
            gradients.push_back(static_cast<float>(static_cast<double>((7 * j + 3 * x) % 11 - 3) / 10.0));
            sum[static_cast<std::size_t>(x)] += gradients.back();
        }

    std::vector<float> messages(workers * block), decoded(length);
    const fastgc::matrix<float> sent{messages.data(), workers, block};
    fastgc::lincomb(fastgc::matrix<const double>{encoding.data(), workers, partitions * reduction},
                    fastgc::matrix<const float>{gradients.data(), partitions * reduction, block}, sent);

    // Workers 1 and 2 straggle.
    const std::vector<double> weights = fastgc::decoding_weights({generator.data(), workers, reduction}, {0, 3});
    fastgc::lincomb(fastgc::matrix<const double>{weights.data(), reduction, 2},
                    std::vector<const float*>{sent[0], sent[3]},
                    std::vector<float*>{decoded.data(), decoded.data() + block}, block);

    for (std::int64_t i = 0; i < workers; ++i) print("message " + std::to_string(i), sent[i], block);
    print("weights", weights.data(), reduction * 2);
    print("decoded", decoded.data(), length);
    print("sum", sum.data(), length);
}

}  // namespace

int main() try {
    round_trip();
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
