#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/engine.h"

namespace runtime::embed {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;  // none: wait for ever

// What a caller asks of the engine. kMore: the news of a request that were held back.
struct Item {
  enum class Kind { kSubmit, kScore, kAbort, kMore };
  Kind kind;
  RequestId id;
  Request request = {};
  Prompt continuation = {};  // of kScore
};

// Requests on their way to an engine, and chunks on their way back. Thread-safe; knows no Python.
//
// A stream lives from Submit until its end has been read, or Release. Chunks that nobody has read
// yet are joined, so a stream holds at most one for each completion; and the engine need not make
// any while its reader has not come for the last one.
class Mailbox {
 public:
  // ---- callers
  // Throw RequestAborted when drained or closed.
  RequestId Submit(Request request, Callbacks callbacks = {});
  RequestId Score(Prompt prompt, Prompt continuation);
  // As Engine's. `may_wait` is called before a wait, and may throw.
  Poll Next(RequestId id, Chunk& chunk, Deadline deadline, void (*may_wait)() = nullptr);
  Poll TryNext(RequestId id, Chunk& chunk);
  void Abort(RequestId id);
  void Release(RequestId id);
  void Drain(Deadline deadline, void (*may_wait)() = nullptr);

  // ---- the thread of callbacks
  struct News {
    RequestId id;
    std::shared_ptr<const Callbacks> callbacks;
    std::vector<Chunk> chunks;
    bool ended = false;
    std::exception_ptr error;
  };
  // Waits for news of a request with callbacks; nothing once the mailbox is closed and empty.
  std::optional<News> WaitForNews();

  // ---- the engine
  // Waits until there are items, at most that long; false once the mailbox is closed.
  bool WaitForItems(std::chrono::duration<double> timeout);
  std::vector<Item> TakeItems();
  // Whether the reader of a stream has all that was pushed. Otherwise news may be held back: an
  // item kMore asks for them once it has. The end and what comes with it are pushed in any case.
  bool WantsNews(RequestId id);
  // No effect on a stream that has been released.
  void Push(RequestId id, Chunk chunk);
  void End(RequestId id, std::exception_ptr error = nullptr);

  // Ends every stream that has not ended with RequestAborted, and all waits.
  void Close();

 private:
  struct Stream {
    std::deque<Chunk> unread;
    bool ended = false;
    std::exception_ptr error;
    std::shared_ptr<const Callbacks> callbacks;  // null: somebody calls Next
    bool has_news = false;                       // it is in news_
    bool holds_back = false;                     // the engine has more
    std::condition_variable arrived;
  };
  using StreamPtr = std::shared_ptr<Stream>;

  RequestId Add(Item item, Callbacks callbacks);
  StreamPtr FindReadable(RequestId id) const;
  Poll TakeChunk(RequestId id, Stream& stream, Chunk& chunk);
  void Announce(RequestId id, Stream& stream);
  void AskForMore(RequestId id, Stream& stream);
  void EndStream(RequestId id, Stream& stream, std::exception_ptr error);

  std::mutex mutex_;
  std::unordered_map<RequestId, StreamPtr> streams_;
  std::deque<Item> items_;
  std::deque<RequestId> news_;
  std::condition_variable items_arrived_, news_arrived_, all_ended_;
  RequestId last_id_ = 0;
  std::int64_t num_running_ = 0;  // streams that have not ended
  bool drained_ = false;
  bool closed_ = false;
};

}  // namespace runtime::embed
