#include "embed/mailbox.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

namespace runtime::embed {
namespace {

// Waits on `condition` until `done`; false when the deadline came first.
template <typename Done>
bool WaitUntil(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
               const Deadline& deadline, Done done) {
  if (deadline) return condition.wait_until(lock, *deadline, done);
  condition.wait(lock, done);
  return true;
}

template <typename T>
void Append(std::vector<T>& to, std::vector<T>&& from) {
  to.insert(to.end(), std::move_iterator(from.begin()), std::move_iterator(from.end()));
}

// Joins the news of one completion; what only a last chunk has comes from the later one.
void Join(Chunk& chunk, Chunk&& next) {
  chunk.text += next.text;
  Append(chunk.token_ids, std::move(next.token_ids));
  Append(chunk.logprobs, std::move(next.logprobs));
  chunk.finish_reason = next.finish_reason;
  chunk.stop_string = std::move(next.stop_string);
  chunk.stop_token_id = next.stop_token_id;
  chunk.metrics = next.metrics;
}

[[noreturn]] void ThrowNoSuchRequest(RequestId id) {
  throw InvalidArgument("request " + std::to_string(id) +
                        " does not exist, or was read to its end");
}

}  // namespace

// ---- callers

RequestId Mailbox::Submit(Request request, Callbacks callbacks) {
  return Add({Item::Kind::kSubmit, 0, std::move(request)}, std::move(callbacks));
}

RequestId Mailbox::Score(Prompt prompt, Prompt continuation) {
  Request request;
  request.prompt = std::move(prompt);
  return Add({Item::Kind::kScore, 0, std::move(request), std::move(continuation)}, {});
}

RequestId Mailbox::Add(Item item, Callbacks callbacks) {
  auto stream = std::make_shared<Stream>();
  if (callbacks.on_chunk || callbacks.on_end) {
    stream->callbacks = std::make_shared<const Callbacks>(std::move(callbacks));
  }
  const std::lock_guard lock(mutex_);
  if (closed_ || drained_) {
    throw RequestAborted("the engine is drained and takes no more requests", "build another one");
  }
  const RequestId id = ++last_id_;
  item.id = id;
  items_.push_back(std::move(item));
  streams_.emplace(id, std::move(stream));
  ++num_running_;
  items_arrived_.notify_one();
  return id;
}

Mailbox::StreamPtr Mailbox::FindReadable(RequestId id) const {
  const auto found = streams_.find(id);
  if (found == streams_.end()) ThrowNoSuchRequest(id);
  if (found->second->callbacks != nullptr) {
    throw InvalidArgument("request " + std::to_string(id) + " has callbacks, which get its chunks");
  }
  return found->second;
}

Poll Mailbox::TakeChunk(RequestId id, Stream& stream, Chunk& chunk) {
  if (!stream.unread.empty()) {
    chunk = std::move(stream.unread.front());
    stream.unread.pop_front();
    AskForMore(id, stream);
    return Poll::kChunk;
  }
  streams_.erase(id);
  if (stream.error != nullptr) std::rethrow_exception(stream.error);
  return Poll::kEnded;
}

Poll Mailbox::Next(RequestId id, Chunk& chunk, Deadline deadline, void (*may_wait)()) {
  std::unique_lock lock(mutex_);
  const StreamPtr stream = FindReadable(id);
  const auto has_news = [&] { return !stream->unread.empty() || stream->ended; };
  if (!has_news() && may_wait != nullptr) may_wait();
  if (!WaitUntil(lock, stream->arrived, deadline, has_news)) return Poll::kNothingYet;
  return TakeChunk(id, *stream, chunk);
}

Poll Mailbox::TryNext(RequestId id, Chunk& chunk) {
  const std::lock_guard lock(mutex_);
  const StreamPtr stream = FindReadable(id);
  if (stream->unread.empty() && !stream->ended) return Poll::kNothingYet;
  return TakeChunk(id, *stream, chunk);
}

void Mailbox::Abort(RequestId id) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (closed_ || found == streams_.end() || found->second->ended) return;
  items_.push_back({Item::Kind::kAbort, id});
  items_arrived_.notify_one();
}

void Mailbox::Release(RequestId id) {
  Abort(id);
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  const StreamPtr stream = std::move(found->second);
  streams_.erase(found);
  stream->unread.clear();
  stream->callbacks = nullptr;
  if (!stream->ended) {  // who waits for it is told
    EndStream(id, *stream, std::make_exception_ptr(RequestAborted("the request was released")));
  }
}

void Mailbox::Drain(Deadline deadline, void (*may_wait)()) {
  std::unique_lock lock(mutex_);
  drained_ = true;
  const auto ended = [&] { return num_running_ == 0; };
  if (!ended() && may_wait != nullptr) may_wait();
  if (!WaitUntil(lock, all_ended_, deadline, ended)) {
    throw DeadlineExceeded(std::to_string(num_running_) + " requests have not ended in time",
                           "they go on; call Drain again, or Abort them");
  }
}

// ---- the thread of callbacks

std::optional<Mailbox::News> Mailbox::WaitForNews() {
  std::unique_lock lock(mutex_);
  while (true) {
    news_arrived_.wait(lock, [&] { return !news_.empty() || closed_; });
    if (news_.empty()) return std::nullopt;
    const RequestId id = news_.front();
    news_.pop_front();
    const auto found = streams_.find(id);
    if (found == streams_.end()) continue;  // released
    const StreamPtr stream = found->second;
    stream->has_news = false;
    News news{id, stream->callbacks, {}, stream->ended, stream->error};
    news.chunks.assign(std::move_iterator(stream->unread.begin()),
                       std::move_iterator(stream->unread.end()));
    stream->unread.clear();
    AskForMore(id, *stream);
    if (stream->ended) streams_.erase(found);
    return news;
  }
}

// ---- the engine

bool Mailbox::WaitForItems(std::chrono::duration<double> timeout) {
  std::unique_lock lock(mutex_);
  items_arrived_.wait_for(lock, timeout, [&] { return closed_ || !items_.empty(); });
  return !closed_;
}

std::vector<Item> Mailbox::TakeItems() {
  const std::lock_guard lock(mutex_);
  std::vector<Item> items(std::move_iterator(items_.begin()), std::move_iterator(items_.end()));
  items_.clear();
  return items;
}

bool Mailbox::WantsNews(RequestId id) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second->ended) return false;
  found->second->holds_back = !found->second->unread.empty();
  return !found->second->holds_back;
}

void Mailbox::Push(RequestId id, Chunk chunk) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second->ended) return;
  Stream& stream = *found->second;
  const auto unread = std::ranges::find(stream.unread, chunk.index, &Chunk::index);
  if (unread != stream.unread.end()) {
    Join(*unread, std::move(chunk));
  } else {
    stream.unread.push_back(std::move(chunk));
  }
  Announce(id, stream);
}

void Mailbox::End(RequestId id, std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second->ended) return;
  EndStream(id, *found->second, std::move(error));
}

void Mailbox::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  const auto error = std::make_exception_ptr(RequestAborted("the engine was destroyed"));
  for (auto& [id, stream] : streams_) {
    if (!stream->ended) EndStream(id, *stream, error);
  }
  items_arrived_.notify_all();
  news_arrived_.notify_all();
}

void Mailbox::Announce(RequestId id, Stream& stream) {
  if (stream.callbacks == nullptr) {
    stream.arrived.notify_one();
  } else if (!stream.has_news) {
    stream.has_news = true;
    news_.push_back(id);
    news_arrived_.notify_one();
  }
}

void Mailbox::AskForMore(RequestId id, Stream& stream) {
  if (closed_ || stream.ended || !stream.holds_back || !stream.unread.empty()) return;
  stream.holds_back = false;
  items_.push_back({Item::Kind::kMore, id});
  items_arrived_.notify_one();
}

void Mailbox::EndStream(RequestId id, Stream& stream, std::exception_ptr error) {
  stream.ended = true;
  stream.error = std::move(error);
  Announce(id, stream);
  stream.arrived.notify_all();
  if (--num_running_ == 0) all_ended_.notify_all();
}

}  // namespace runtime::embed
