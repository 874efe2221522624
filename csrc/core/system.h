// What lstmfast asks of the operating system: memory, random bytes, cores, forks, features of Arm, tile registers. Only system.cc
// includes a system's headers and asks which system it is compiled for; where one lacks something, it says what is done
// instead. No threads: std::thread has them.
#pragma once

#include <cstddef>

namespace lstmfast {

constexpr std::size_t kCacheLine = 64;

// Memory that begins on a cache line; null if there is none. Much memory is in huge pages where the system has them:
// hardware prefetches a stream of weights only to the end of a page.
void* allocate_memory(std::size_t bytes);
// Back to the allocator, which may keep it.
void free_memory(void* memory);
// Back to the system: the contents of memory from allocate_memory are lost, and it must be freed all the same.
void discard_memory(void* memory, std::size_t bytes);
// Small blocks that malloc keeps go back to the system, where malloc can do that.
void trim_memory();

// Cryptographically secure.
void fill_with_random_bytes(void* memory, std::size_t size);

// How many cores this process may use, at least 1.
int usable_cores();

// Calls `function` in every child of a fork, before fork returns there.
void call_after_fork(void (*function)());

// Whether a 64-bit Arm CPU has FEAT_DotProd; false for others.
bool system_knows_dot_products();

// Asks once for the registers of AMX, for all threads and children. False if the system refuses.
bool request_tile_registers();

}  // namespace lstmfast
