// A table of blocks of numbers by bit mask; bounded, least recently used out first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"

namespace fastgc {

// Masks have (n + 63) / 64 words for n positions, and each is the beginning of its block. Whoever has a table for
// several threads locks it.
class RecentMasks {
  public:
    // A mask, and what is kept for it.
    using Block = std::unique_ptr<std::uint64_t[]>;

    RecentMasks(Index n, Index capacity) : words_((n + 63) / 64), buckets_(kFewest), nodes_(1) {
        set_capacity(capacity);
        nodes_.reserve(kFewest + 1);
    }

    Index words() const { return words_; }
    Index capacity() const { return capacity_; }
    Index size() const { return size_; }

    void set_capacity(Index capacity) { capacity_ = std::min(capacity, Index{UINT32_MAX} / 2); }

    // A block for a mask, with room for so many more words.
    Block block(const std::uint64_t* mask, Index more) const {
        Block made(new std::uint64_t[static_cast<std::size_t>(words_ + more)]);
        std::copy(mask, mask + words_, made.get());
        return made;
    }

    // The words kept for a mask, which becomes the most recently used; null where there are none.
    const std::uint64_t* find(const std::uint64_t* mask) {
        const Slot found = *place(mask, hash_of(mask));
        if (found == 0) return nullptr;
        touch(found);
        return nodes_[found].block.get() + words_;
    }

    bool holds(const std::uint64_t* mask) { return *place(mask, hash_of(mask)) != 0; }

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

    // After make_room(). Takes the block, unless there is one for its mask already; the newest it is in any case.
    void add(Block& block) {
        const std::uint64_t hash = hash_of(block.get());
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

    // Whether some must go, when all that were to be added are.
    bool too_many() const { return size_ > capacity_; }

    // Gives away the oldest block, of which there is one.
    Block drop() {
        const Slot slot = nodes_[0].newer;
        Node& node = nodes_[slot];
        *place(node.block.get(), node.hash) = node.next;
        unlink(slot);
        node.next = free_;
        free_ = slot;
        --size_;
        return std::move(node.block);
    }

    // Shows visit(words) what is kept for each mask, the oldest first.
    template <class Visit>
    void each(const Visit& visit) const {
        for (Slot slot = nodes_[0].newer; slot != 0; slot = nodes_[slot].newer)
            visit(static_cast<const std::uint64_t*>(nodes_[slot].block.get() + words_));
    }

  private:
    // A mask's place in a vector, 0 being none. What a search and the order of use need lies close together, 32 bytes
    // a mask: of 184,756 patterns, 150 MB with their weights, this much stays in a cache of the CPU.
    using Slot = std::uint32_t;
    struct Node {
        std::uint64_t hash = 0;
        Slot next = 0;  // of its bucket, or of those that are free
        Slot older = 0, newer = 0;
        Block block;
    };
    static constexpr std::size_t kFewest = 64;  // buckets

    // The upper half of a product depends on all bits of a word, and the lower half chooses the bucket.
    std::uint64_t hash_of(const std::uint64_t* mask) const {
        std::uint64_t hash = 0;
        for (Index w = 0; w < words_; ++w) {
            hash = (hash ^ mask[w]) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 32;
        }
        return hash;
    }

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

    const Index words_;
    Index capacity_ = 0, size_ = 0;
    Slot free_ = 0;
    std::vector<Slot> buckets_;  // a power of two
    std::vector<Node> nodes_;    // the first has the ends of the order of use, the newest and the oldest mask
};

}  // namespace fastgc
