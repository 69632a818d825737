#include "distributed/shared_memory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/unique_fd.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr const char* kFolder = "/dev/shm";
constexpr const char* kUnpublished = ".new";  // ends a name that is not published yet

std::string PathOf(const std::string& name) { return std::string(kFolder) + "/" + name; }

std::string ErrorText(int error) { return std::strerror(error); }

std::byte* Map(int fd, std::size_t num_bytes, int flags) {
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) {
    throw CommunicatorError(std::to_string(num_bytes) +
                            " bytes of shared memory cannot be mapped: " + ErrorText(errno));
  }
  return static_cast<std::byte*>(data);
}

// "21 MiB", rounded up.
std::string MebibytesText(std::uint64_t num_bytes) {
  return std::to_string((num_bytes + (1 << 20) - 1) >> 20) + " MiB";
}

CapacityError NoRoom(const std::string& what, std::size_t num_bytes, int error) {
  struct statvfs room{};
  const bool known = statvfs(kFolder, &room) == 0;
  const std::uint64_t free = known ? std::uint64_t{room.f_bavail} * room.f_frsize >> 20 : 0;
  return CapacityError(what + " needs " + MebibytesText(num_bytes) + " in " + kFolder + ", " +
                           std::to_string(free) + " MiB are free: " + ErrorText(error),
                       "a larger " + std::string(kFolder) +
                           " helps, in a container --shm-size; files of dead programs may fill it");
}

bool IsStale(const char* path) {
  constexpr std::time_t kYoung = 60;  // seconds; may not be locked yet
  const UniqueFd file(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status{};
  return file && fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode) &&
         status.st_uid == geteuid() && std::time(nullptr) - status.st_mtime > kYoung &&
         flock(file.get(), LOCK_EX | LOCK_NB) == 0;
}

}  // namespace

SharedMemory SharedMemory::Create(std::string name, std::size_t num_bytes,
                                  const std::string& what) {
  std::string path = PathOf(name) + kUnpublished;
  UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) throw NoRoom(what, num_bytes, errno);
  flock(file.get(), LOCK_SH);
  SharedMemory memory(nullptr, num_bytes);
  memory.path_ = std::move(path);
  if (const int error = posix_fallocate(file.get(), 0, static_cast<off_t>(num_bytes)); error != 0) {
    throw NoRoom(what, num_bytes, error);
  }
  memory.data_ = Map(file.get(), num_bytes, MAP_SHARED);
  memory.held_ = std::move(file);
  return memory;
}

std::optional<SharedMemory> SharedMemory::Open(std::string name) {
  const std::string path = PathOf(name);
  const UniqueFd file(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file && errno == ENOENT) return std::nullopt;
  struct stat status{};
  if (!file || fstat(file.get(), &status) != 0) {
    throw CommunicatorError(path + " cannot be opened: " + ErrorText(errno));
  }
  if (status.st_uid != geteuid()) throw CommunicatorError(path + " belongs to another user");
  const auto num_bytes = static_cast<std::size_t>(status.st_size);
  SharedMemory memory(Map(file.get(), num_bytes, MAP_SHARED), num_bytes);
  memory.path_ = path;
  return memory;
}

void SharedMemory::RemoveStale(const std::string& prefix) {
  std::error_code failed;
  std::filesystem::directory_iterator entry(kFolder, failed), end;
  for (; !failed && entry != end; entry.increment(failed)) {
    const std::filesystem::path& path = entry->path();
    if (path.filename().string().starts_with(prefix) && IsStale(path.c_str())) unlink(path.c_str());
  }
}

SharedMemory SharedMemory::Anonymous(std::size_t num_bytes) {
  return SharedMemory(Map(-1, num_bytes, MAP_SHARED | MAP_ANONYMOUS), num_bytes);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(other.num_bytes_),
      path_(std::exchange(other.path_, {})),
      held_(std::move(other.held_)) {}

SharedMemory::~SharedMemory() {
  Unlink();
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

void SharedMemory::Publish() {
  std::string published = path_.substr(0, path_.size() - std::strlen(kUnpublished));
  if (std::rename(path_.c_str(), published.c_str()) != 0) {
    throw CommunicatorError(path_ + " cannot be renamed: " + ErrorText(errno));
  }
  path_ = std::move(published);
}

void SharedMemory::Unlink() noexcept {
  if (path_.empty()) return;
  unlink(path_.c_str());
  path_.clear();
  held_ = UniqueFd();
}

}  // namespace runtime
