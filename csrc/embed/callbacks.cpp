#include "embed/callbacks.h"

#include <pthread.h>

#include <cstdio>
#include <string>
#include <utility>

namespace runtime::embed {
namespace {

std::string What(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

void PrintError(RequestId id, const std::exception_ptr& error) {
  std::fprintf(stderr, "runtime: a callback of request %lld threw, so it is aborted: %s\n",
               static_cast<long long>(id), What(error).c_str());
}

}  // namespace

CallbackThread::CallbackThread(std::shared_ptr<Mailbox> mailbox, OnError on_error)
    : mailbox_(std::move(mailbox)), on_error_(std::move(on_error)), thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), "runtime-calls");
}

CallbackThread::~CallbackThread() { thread_.join(); }

void CallbackThread::Run() {
  while (const auto news = mailbox_->WaitForNews()) Deliver(*news);
}

void CallbackThread::Deliver(const Mailbox::News& news) {
  try {
    for (const Chunk& chunk : news.chunks) {
      if (news.callbacks->on_chunk) news.callbacks->on_chunk(news.id, chunk);
    }
    if (news.ended && news.callbacks->on_end) news.callbacks->on_end(news.id, news.error);
  } catch (...) {
    mailbox_->Release(news.id);
    Report(news.id, std::current_exception());
  }
}

void CallbackThread::Report(RequestId id, std::exception_ptr error) {
  if (!on_error_) return PrintError(id, error);
  try {
    on_error_(id, std::move(error));
  } catch (...) {  // a reporter that fails has nobody left to tell
    PrintError(id, std::current_exception());
  }
}

}  // namespace runtime::embed
