#include "control_stream.h"

#include <utility>

namespace v1 = presage::v1;

ControlStream::ControlStream(Client& client, const v1::ControlStart& start, std::chrono::milliseconds limit) {
  client.prepare(context_, limit);
  client.planning().async()->Control(&context_, this);
  *outgoing_.mutable_start() = start;
  AddHold();  // writes come from the robot's thread: gRPC keeps this object until finish() lets go
  StartWrite(&outgoing_);
  StartRead(&incoming_);
  StartCall();
}

bool ControlStream::send(v1::ControlObservation observation) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (writing_ || awaiting_ || over_ || finishing_) return false;
    writing_ = awaiting_ = true;
  }
  *outgoing_.mutable_observation() = std::move(observation);
  StartWrite(&outgoing_);
  return true;
}

std::optional<v1::ControlResponse> ControlStream::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(newest_, std::nullopt);
}

bool ControlStream::over() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return over_;
}

grpc::Status ControlStream::finish() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!std::exchange(finishing_, true)) {
    const bool is_open = !over_;
    lock.unlock();
    if (is_open) context_.TryCancel();
    RemoveHold();
    lock.lock();
  }
  done_.wait(lock, [this] { return status_.has_value(); });
  return *status_;
}

void ControlStream::OnWriteDone(bool) {
  const std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
}

void ControlStream::OnReadDone(bool ok) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ok) {
      over_ = true;
      return;
    }
    if (incoming_.has_plan() || incoming_.has_error()) {
      newest_ = std::move(incoming_);
      awaiting_ = false;
    }
  }
  StartRead(&incoming_);
}

void ControlStream::OnDone(const grpc::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  status_ = status;
  done_.notify_all();  // under the lock: the object may be gone right after it
}
