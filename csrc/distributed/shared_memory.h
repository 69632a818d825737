#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "common/unique_fd.h"

namespace runtime {

// Memory that processes share by a name in /dev/shm. Unlink on any object, or its end, removes the
// name; the memory itself lives as long as anybody maps it.
class SharedMemory {
 public:
  // Zeros under a name that nobody sees before Publish. All of it is taken now: a full /dev/shm is
  // a CapacityError here, not a SIGBUS later. `what` begins its sentence.
  static SharedMemory Create(std::string name, std::size_t num_bytes, const std::string& what);
  // What another process published, or nullopt. Throws CommunicatorError where it cannot be mapped
  // or belongs to another user.
  static std::optional<SharedMemory> Open(std::string name);
  // Removes names with this prefix whose creator died before it could: of this user, older than a
  // minute, and held by nobody.
  static void RemoveStale(const std::string& prefix);
  // Zeros without a name, for threads.
  static SharedMemory Anonymous(std::size_t num_bytes);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&&) = delete;
  ~SharedMemory();

  std::byte* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }

  // Gives the memory its name, with all that was written before. REQUIRES: made by Create.
  void Publish();
  // Idempotent; the name may be gone already.
  void Unlink() noexcept;

 private:
  SharedMemory(std::byte* data, std::size_t num_bytes) : data_(data), num_bytes_(num_bytes) {}

  std::byte* data_;
  std::size_t num_bytes_;
  std::string path_;  // of the name, or empty: there is none, or it was removed
  UniqueFd held_;     // of the creator, locked: its name is not stale
};

}  // namespace runtime
