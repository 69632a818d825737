#include "distributed/peer_copies.h"

#include <string>
#include <utility>

#include "common/check.h"
#include "common/text.h"
#include "runtime/error.h"

namespace runtime {
namespace {

constexpr unsigned kNonBlocking = 1;
constexpr unsigned kAtLeast = 0;  // CU_STREAM_WAIT_VALUE_GEQ, as signed numbers that go round
// From the value that is waited for to one that has passed it; the words of a group differ by less.
constexpr std::uint32_t kRelease = 0x3fffffff;
constexpr std::size_t kAlignment = 256;

std::size_t RoundedUp(std::size_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void Check(const CudaDriver& driver, const char* name, CudaResult result) {
  if (result == 0) return;
  const char* text = nullptr;
  driver.GetErrorString(result, &text);
  throw CommunicatorError(std::string(name) + ": " +
                          (text != nullptr ? text : "error " + Text(result)));
}

CudaStream* Stream(StreamHandle stream) { return static_cast<CudaStream*>(stream); }

}  // namespace

std::unique_ptr<PeerCopies> PeerCopies::Make(
    Communicator& group, std::size_t num_words, std::size_t num_bytes,
    const std::function<const CudaDriver&()>& load_driver) {
  const std::size_t words_bytes = RoundedUp(num_words * sizeof(std::int32_t));
  auto buffers = PeerBuffers::Make(group, words_bytes + num_bytes, load_driver);
  std::unique_ptr<PeerCopies> copies(
      new PeerCopies(group.rank(), std::move(buffers), num_words, num_bytes, load_driver()));
  group.OnFailure([release = std::weak_ptr(copies->release_)] {
    if (const auto held = release.lock()) held->Run();
  });
  return copies;
}

PeerCopies::PeerCopies(int rank, std::unique_ptr<PeerBuffers> buffers, std::size_t num_words,
                       std::size_t num_bytes, const CudaDriver& driver)
    : rank_(rank),
      buffers_(std::move(buffers)),
      num_words_(num_words),
      words_bytes_(RoundedUp(num_words * sizeof(std::int32_t))),
      num_bytes_(num_bytes),
      driver_(driver),
      release_(std::make_shared<Release>()) {
  Check(driver, "cuCtxGetCurrent", driver.CtxGetCurrent(&release_->context));
  Check(driver, "cuStreamCreate", driver.StreamCreate(&release_->stream, kNonBlocking));
  release_->words = At(rank, 0);
  release_->num_words = num_words;
  release_->driver = &driver;
}

PeerCopies::~PeerCopies() {
  release_->Run();
  const std::lock_guard lock(release_->mutex);
  const CudaDriver* driver = std::exchange(release_->driver, nullptr);
  if (driver == nullptr) return;
  driver->CtxPushCurrent(release_->context);
  driver->StreamDestroy(release_->stream);
  driver->CtxPopCurrent(&release_->context);
}

void PeerCopies::Release::Run() noexcept {
  const std::lock_guard lock(mutex);
  if (driver == nullptr) return;
  CudaContext* popped = nullptr;
  driver->CtxPushCurrent(context);
  driver->MemsetD32Async(words, latest.load() + kRelease, num_words, stream);
  driver->CtxPopCurrent(&popped);
}

CudaAddress PeerCopies::At(int rank, std::size_t offset) const {
  return buffers_->addresses()[static_cast<std::size_t>(rank)] + offset;
}

CudaAddress PeerCopies::WordAt(int rank, std::size_t word) const {
  Require(rank >= 0 && static_cast<std::size_t>(rank) < buffers_->addresses().size(),
          "peer copies: rank is not one of the group");
  Require(word < num_words_, "peer copies: there is no such word");
  return At(rank, word * sizeof(std::int32_t));
}

void PeerCopies::Copy(int rank, std::size_t offset, CudaAddress from, std::size_t num_bytes,
                      StreamHandle stream) {
  Require(rank >= 0 && static_cast<std::size_t>(rank) < buffers_->addresses().size(),
          "peer copies: rank is not one of the group");
  Require(offset <= num_bytes_ && num_bytes <= num_bytes_ - offset,
          "peer copies: a copy ends within the memory");
  Check(driver_, "cuMemcpyAsync",
        driver_.MemcpyAsync(At(rank, words_bytes_ + offset), from, num_bytes, Stream(stream)));
}

void PeerCopies::Write(int rank, std::size_t word, std::int32_t value, StreamHandle stream) {
  Check(driver_, "cuStreamWriteValue32",
        driver_.StreamWriteValue32(Stream(stream), WordAt(rank, word),
                                   static_cast<std::uint32_t>(value), 0));
}

void PeerCopies::Wait(std::size_t word, std::int32_t value, StreamHandle stream) {
  const auto awaited = static_cast<std::uint32_t>(value);
  release_->latest.store(awaited);
  Check(driver_, "cuStreamWaitValue32",
        driver_.StreamWaitValue32(Stream(stream), WordAt(rank_, word), awaited, kAtLeast));
}

}  // namespace runtime
