// Weights by survivor pattern, as fastgc.patterns keeps them for Python. It solves nothing: who asks for what is not
// held adds it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace fastgc {

// The weights (m x q) of sets of q among n rows, by bit masks of (n + 63) / 64 words; bounded, least recently used out
// first. All but the destructor may be called by any number of threads at once. Weights are copied in and out: what is
// held may be dropped at any moment.
class PatternCache {
  public:
    // A pattern's mask and the bits of its weights.
    using Block = std::unique_ptr<std::uint64_t[]>;

    PatternCache(Index n, Index m, Index capacity)
        : words_((n + 63) / 64),
          m_(m),
          capacity_(std::min(capacity, Index{UINT32_MAX} / 2)),
          buckets_(kFewest),
          nodes_(1) {
        nodes_.reserve(kFewest + 1);
    }
    PatternCache(const PatternCache&) = delete;
    PatternCache& operator=(const PatternCache&) = delete;

    Index words() const { return words_; }
    Index capacity() const { return capacity_; }
    Index size() const { return read(size_); }
    Index hits() const { return read(hits_); }
    Index misses() const { return read(misses_); }

    // Copies the weights of a set of q survivors, if they are held.
    bool find(const std::uint64_t* mask, Index q, double* weights) {
        const std::uint64_t hash = hash_of(mask);
        const std::lock_guard lock(mutex_);
        const Slot found = *place(mask, hash);
        if (found == 0) return false;
        ++hits_;
        touch(found);
        std::memcpy(weights, nodes_[found].block.get() + words_, bytes(q));
        return true;
    }

    bool holds(const std::uint64_t* mask) {
        const std::uint64_t hash = hash_of(mask);
        const std::lock_guard lock(mutex_);
        return *place(mask, hash) != 0;
    }

    Block block(const std::uint64_t* mask, Index q, const double* weights) const {
        Block made(new std::uint64_t[static_cast<std::size_t>(words_ + m_ * q)]);
        std::copy(mask, mask + words_, made.get());
        std::memcpy(made.get() + words_, weights, bytes(q));
        return made;
    }

    // After a look-up that found nothing. Another thread may have added the same meanwhile.
    void add(Block block) {
        const std::uint64_t hash = hash_of(block.get());
        const std::lock_guard lock(mutex_);
        make_room(1);
        ++misses_;
        link(block, hash);
        shrink();
    }

    // Makes `count` patterns, not more than the capacity, the most recently used, in the order given. Those that are
    // held need no block; where there is neither, a mask is passed over. Takes the blocks that it keeps.
    void add(const std::uint64_t* masks, Index count, std::vector<Block>& blocks) {
        const std::lock_guard lock(mutex_);
        make_room(count);
        for (Index i = 0; i < count; ++i) {
            const std::uint64_t* const mask = masks + i * words_;
            Block& block = blocks[static_cast<std::size_t>(i)];
            if (block != nullptr)
                link(block, hash_of(mask));
            else if (const Slot found = *place(mask, hash_of(mask)))
                touch(found);
        }
        shrink();  // not before: it might drop what is still to be touched
    }

  private:
    // A pattern's place in a vector, 0 being none. What a search and the order of use need lies close together, 32
    // bytes a pattern: of 184,756 patterns, 150 MB with their weights, this much stays in a cache of the CPU.
    using Slot = std::uint32_t;
    struct Node {
        std::uint64_t hash = 0;
        Slot next = 0;  // of its bucket, or of those that are free
        Slot older = 0, newer = 0;
        Block block;
    };
    static constexpr std::size_t kFewest = 64;  // buckets

    std::size_t bytes(Index q) const { return static_cast<std::size_t>(m_ * q) * sizeof(double); }

    Index read(const Index& count) const {
        const std::lock_guard lock(mutex_);
        return count;
    }

    // The upper half of a product depends on all bits of a word, and the lower half chooses the bucket.
    std::uint64_t hash_of(const std::uint64_t* mask) const {
        std::uint64_t hash = 0;
        for (Index w = 0; w < words_; ++w) {
            hash = (hash ^ mask[w]) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 32;
        }
        return hash;
    }

    // What follows is called under the lock.

    Slot* bucket(std::uint64_t hash) { return &buckets_[static_cast<std::size_t>(hash) & (buckets_.size() - 1)]; }

    // Where the slot of a mask stands; if there is none, the end of its bucket.
    Slot* place(const std::uint64_t* mask, std::uint64_t hash) {
        Slot* at = bucket(hash);
        for (; *at != 0; at = &nodes_[*at].next)
            if (nodes_[*at].hash == hash && std::equal(mask, mask + words_, nodes_[*at].block.get())) break;
        return at;
    }

    void unlink(Slot slot) {
        const Node& node = nodes_[slot];
        nodes_[node.older].newer = node.newer;
        nodes_[node.newer].older = node.older;
    }
    void make_newest(Slot slot) {
        Node& ends = nodes_[0];
        nodes_[slot].older = ends.older;
        nodes_[slot].newer = 0;
        nodes_[ends.older].newer = slot;
        ends.older = slot;
    }
    void touch(Slot slot) {
        unlink(slot);
        make_newest(slot);
    }

    // Takes the block, unless the pattern is held.
    void link(Block& block, std::uint64_t hash) {
        Slot* const at = place(block.get(), hash);
        if (*at != 0) return touch(*at);
        const Slot slot = free_ != 0 ? free_ : static_cast<Slot>(nodes_.size());
        *at = slot;
        if (free_ != 0)
            free_ = nodes_[slot].next;
        else
            nodes_.emplace_back();
        Node& node = nodes_[slot];
        node.hash = hash;
        node.next = 0;
        node.block = std::move(block);
        make_newest(slot);
        ++size_;
    }

    // A bucket and a node for each of so many more: all that may throw, before anything is changed.
    void make_room(Index more) {
        std::size_t wanted = buckets_.size();
        while (wanted < static_cast<std::size_t>(size_ + more)) wanted *= 2;
        if (wanted == buckets_.size()) return;
        nodes_.reserve(wanted + 1);
        std::vector<Slot> buckets(wanted);
        buckets_.swap(buckets);
        for (Slot slot = nodes_[0].newer; slot != 0; slot = nodes_[slot].newer) {
            Slot* const first = bucket(nodes_[slot].hash);
            nodes_[slot].next = *first;
            *first = slot;
        }
    }

    void shrink() {
        for (; size_ > capacity_; --size_) {
            const Slot oldest = nodes_[0].newer;
            Node& node = nodes_[oldest];
            *place(node.block.get(), node.hash) = node.next;
            unlink(oldest);
            node.block = nullptr;
            node.next = free_;
            free_ = oldest;
        }
    }

    const Index words_, m_, capacity_;
    mutable std::mutex mutex_;
    Index size_ = 0, hits_ = 0, misses_ = 0;
    Slot free_ = 0;
    std::vector<Slot> buckets_;  // a power of two
    std::vector<Node> nodes_;    // the first has the ends of the order of use, the newest and the oldest pattern
};

}  // namespace fastgc
