#include "client.h"

#include <arpa/inet.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "rich_error.pb.h"

namespace v1 = presage::v1;
using namespace std::chrono_literals;

namespace {

constexpr auto kCallLimit = 5s;

presage_robot::ErrorInfo error_info(const grpc::Status& status) {
  presage_robot::Status rich;
  presage_robot::ErrorInfo info;
  if (!rich.ParseFromString(status.error_details())) return info;
  for (const auto& detail : rich.details()) {
    if (detail.type_url() == "type.googleapis.com/google.rpc.ErrorInfo" && info.ParseFromString(detail.value())) break;
  }
  return info;
}

std::shared_ptr<grpc::ChannelCredentials> credentials(const std::string& ca_file) {
  if (ca_file.empty()) return grpc::InsecureChannelCredentials();
  std::ifstream file(ca_file, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + ca_file);
  std::ostringstream pem;
  pem << file.rdbuf();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = pem.str();
  return grpc::SslCredentials(options);
}

bool is_loopback(const std::string& address) {
  std::string host = address;
  for (const std::string scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (host.rfind(scheme, 0) == 0) {
      host = host.substr(scheme.size());
      break;
    }
  }
  if (host.rfind("unix:", 0) == 0 || host.rfind("unix-abstract:", 0) == 0) return true;
  host = host.substr(0, host[0] == '[' ? host.find(']') + 1 : host.find(':'));
  if (host == "localhost" || host == "[::1]") return true;
  in_addr number{};  // 127.example.org begins like an address and is none
  return inet_pton(AF_INET, host.c_str(), &number) == 1 && (ntohl(number.s_addr) >> 24) == 127;
}

std::string proxy_for(const std::string& address) {
  if (is_loopback(address)) return "";
  for (const char* name : {"grpc_proxy", "https_proxy", "http_proxy"}) {  // as gRPC looks for it
    const char* found = std::getenv(name);
    if (found == nullptr || *found == 0) continue;
    const std::string proxy = found;
    const auto at = proxy.rfind('@');  // what stands before it is a password
    return (at == std::string::npos ? proxy : "http://" + proxy.substr(at + 1)) + " (" + name + ")";
  }
  return "";
}

}  // namespace

std::string reason_of(const grpc::Status& status) {
  const std::string reason = error_info(status).reason();
  return reason.empty() ? "gRPC code " + std::to_string(status.error_code()) : reason;
}

std::string describe(const grpc::Status& status) {
  std::string text = reason_of(status) + ": " + status.error_message();
  const auto info = error_info(status);
  for (const char* name : {"field", "rule", "value"}) {
    const auto found = info.metadata().find(name);
    if (found != info.metadata().end()) text += std::string("\n  ") + name + ": " + found->second;
  }
  return text;
}

CallFailed::CallFailed(const std::string& call, const grpc::Status& status)
    : std::runtime_error(call + " failed: " + describe(status)), code(status.error_code()), reason(reason_of(status)) {}

Client::Client(const std::string& address, const std::string& ca_file, std::string api_key)
    : api_key_(std::move(api_key)), proxy_(proxy_for(address)) {
  grpc::ChannelArguments arguments;
  // A proxy that the environment names for the world outside does not reach this machine itself.
  if (is_loopback(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // gRPC's own pauses between attempts to connect grow to two minutes: too long for a robot whose server restarts.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  channel_ = grpc::CreateCustomChannel(address, credentials(ca_file), arguments);
  models_ = v1::Models::NewStub(channel_);
  goals_ = v1::Goals::NewStub(channel_);
  sessions_ = v1::Sessions::NewStub(channel_);
  planning_ = v1::Planning::NewStub(channel_);
}

void Client::prepare(grpc::ClientContext& context, std::chrono::milliseconds limit) const {
  context.set_deadline(std::chrono::system_clock::now() + limit);
  if (!api_key_.empty()) context.AddMetadata("x-api-key", api_key_);
}

CallFailed Client::failed(const std::string& call, const grpc::Status& status) const {
  const bool unreached = status.error_code() == grpc::StatusCode::UNAVAILABLE && !proxy_.empty();
  return CallFailed(unreached ? call + " through the proxy " + proxy_ : call, status);
}

void Client::wait_ready(std::chrono::seconds limit) {
  const auto until = std::chrono::steady_clock::now() + limit;
  while (true) {
    try {
      model();
      return;
    } catch (const CallFailed& error) {
      if (error.code != grpc::StatusCode::UNAVAILABLE || std::chrono::steady_clock::now() >= until) throw;
    }
    std::this_thread::sleep_for(200ms);
  }
}

v1::Model Client::model() {
  grpc::ClientContext context;
  prepare(context, kCallLimit);
  v1::ModelsGetResponse reply;
  const auto status = models_->Get(&context, v1::ModelsGetRequest(), &reply);
  if (!status.ok()) throw failed("Models.Get", status);
  return reply.model();
}

std::string Client::create_goal(const std::string& image_file_bytes) {
  grpc::ClientContext context;
  prepare(context, kCallLimit);
  v1::GoalsCreateRequest request;
  request.mutable_image()->set_encoded(image_file_bytes);
  v1::GoalsCreateResponse reply;
  const auto status = goals_->Create(&context, request, &reply);
  if (!status.ok()) throw failed("Goals.Create", status);
  return reply.goal().goal_id();
}

std::string Client::create_session(const std::string& goal_id) {
  grpc::ClientContext context;
  prepare(context, kCallLimit);
  v1::SessionsCreateRequest request;
  request.set_goal_id(goal_id);
  v1::SessionsCreateResponse reply;
  const auto status = sessions_->Create(&context, request, &reply);
  if (!status.ok()) throw failed("Sessions.Create", status);
  return reply.session().session_id();
}

void Client::delete_session(const std::string& session_id) {
  grpc::ClientContext context;
  prepare(context, kCallLimit);
  v1::SessionsDeleteRequest request;
  request.set_session_id(session_id);
  v1::SessionsDeleteResponse reply;
  const auto status = sessions_->Delete(&context, request, &reply);
  if (!status.ok()) throw failed("Sessions.Delete", status);
}

v1::Plan Client::plan(const v1::PlanRequest& request, std::chrono::milliseconds limit) {
  grpc::ClientContext context;
  prepare(context, limit);
  v1::PlanResponse reply;
  const auto status = planning_->Plan(&context, request, &reply);
  if (!status.ok()) throw failed("Planning.Plan", status);
  return reply.plan();
}
