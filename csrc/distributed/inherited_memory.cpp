#include "distributed/inherited_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace runtime {
namespace {

// The limit behind an errno and how to raise it; "" where it is no limit.
std::string LimitHint(int error) {
  switch (error) {
    case EMFILE:
      return "raise the limit of open files, ulimit -n";
    case ENFILE:
      return "the machine has no open files left, sysctl fs.file-max";
    case EAGAIN:
      return "raise the limit of processes, ulimit -u";
    case EFBIG:
      return "raise the limit of file sizes, ulimit -f";
    case ENOSPC:
    case ENOMEM:
      return "the machine, or the container's memory limit, has too little memory left";
    default:
      return "";
  }
}

}  // namespace

void ThrowSystemError(const std::string& what, int error) {
  const std::string message = what + ": " + std::generic_category().message(error);
  const std::string hint = LimitHint(error);
  if (hint.empty()) throw EngineDead(message);
  throw CapacityError(message, hint);
}

InheritedMemory::InheritedMemory(UniqueFd file, std::size_t num_bytes)
    : file_(std::move(file)), num_bytes_(num_bytes) {
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
  if (data == MAP_FAILED) {
    ThrowSystemError("mapping " + std::to_string(num_bytes) + " bytes that ranks share", errno);
  }
  data_ = static_cast<std::byte*>(data);
}

InheritedMemory::InheritedMemory(InheritedMemory&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(other.num_bytes_) {}

InheritedMemory::~InheritedMemory() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

InheritedMemory InheritedMemory::Create(std::size_t num_bytes) {
  const std::string what = std::to_string(num_bytes) + " bytes of memory that ranks share";
  UniqueFd file(memfd_create("runtime-ranks", MFD_CLOEXEC));
  if (!file) ThrowSystemError(what, errno);
  // not ftruncate: what is missing shows here, not as SIGBUS at the first touch
  const int error = posix_fallocate(file.get(), 0, static_cast<off_t>(num_bytes));
  if (error != 0) ThrowSystemError(what, error);
  return InheritedMemory(std::move(file), num_bytes);
}

InheritedMemory InheritedMemory::Map(UniqueFd file) {
  struct stat found{};
  if (fstat(file.get(), &found) != 0) ThrowSystemError("the memory that ranks share", errno);
  return InheritedMemory(std::move(file), static_cast<std::size_t>(found.st_size));
}

}  // namespace runtime
