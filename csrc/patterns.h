// Weights by survivor pattern, as fastgc.patterns keeps them for Python. It solves nothing: who asks for what is not
// held adds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "recent_masks.h"

namespace fastgc {

// The weights (m x q) of sets of q among n rows, by bit masks; bounded, least recently used out first. All but the
// destructor may be called by any number of threads at once. Weights are copied in and out: what is held may be dropped
// at any moment.
class PatternCache {
  public:
    using Block = RecentMasks::Block;

    PatternCache(Index n, Index m, Index capacity) : m_(m), held_(n, capacity) {}
    PatternCache(const PatternCache&) = delete;
    PatternCache& operator=(const PatternCache&) = delete;

    Index words() const { return held_.words(); }
    Index capacity() const { return held_.capacity(); }
    Index size() const {
        return read([this] { return held_.size(); });
    }
    Index hits() const {
        return read([this] { return hits_; });
    }
    Index misses() const {
        return read([this] { return misses_; });
    }

    // Copies the weights of a set of q survivors, if they are held.
    bool find(const std::uint64_t* mask, Index q, double* weights) {
        const std::lock_guard lock(mutex_);
        const std::uint64_t* const found = held_.find(mask);
        if (found == nullptr) return false;
        ++hits_;
        std::memcpy(weights, found, bytes(q));
        return true;
    }

    bool holds(const std::uint64_t* mask) {
        const std::lock_guard lock(mutex_);
        return held_.holds(mask);
    }

    Block block(const std::uint64_t* mask, Index q, const double* weights) const {
        Block made = held_.block(mask, m_ * q);
        std::memcpy(made.get() + words(), weights, bytes(q));
        return made;
    }

    // After a look-up that found nothing. Another thread may have added the same meanwhile.
    void add(Block block) {
        const std::lock_guard lock(mutex_);
        held_.make_room(1);
        ++misses_;
        held_.add(block);
        shrink();
    }

    // Makes `count` patterns, not more than the capacity, the most recently used, in the order given. Those that are
    // held need no block; where there is neither, a mask is passed over. Takes the blocks that it keeps.
    void add(const std::uint64_t* masks, Index count, std::vector<Block>& blocks) {
        const std::lock_guard lock(mutex_);
        held_.make_room(count);
        for (Index i = 0; i < count; ++i) {
            Block& block = blocks[static_cast<std::size_t>(i)];
            if (block != nullptr)
                held_.add(block);
            else
                held_.find(masks + i * words());
        }
        shrink();  // not before: it might drop what is still to be touched
    }

  private:
    std::size_t bytes(Index q) const { return static_cast<std::size_t>(m_ * q) * sizeof(double); }

    template <class Number>
    Index read(const Number& number) const {
        const std::lock_guard lock(mutex_);
        return number();
    }

    void shrink() {
        while (held_.too_many()) held_.drop();
    }

    const Index m_;
    mutable std::mutex mutex_;
    Index hits_ = 0, misses_ = 0;
    RecentMasks held_;
};

}  // namespace fastgc
