// The device of __init__.py. Operations that have no kernel here copy their tensors to the CPU and
// back, by torch's own fallback, if all of them are on the device.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {
constexpr auto kind = c10::DeviceType::PrivateUse1;
const c10::Device there(kind, 0);
std::atomic<size_t> used{0}, peak{0}, limit{size_t(1) << 40};

constexpr size_t head = 64;  // bytes before each block, which hold its size

void release(void* data) {
  if (!data) return;
  auto* start = static_cast<char*>(data) - head;
  used -= *reinterpret_cast<size_t*>(start);
  std::free(start);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, nullptr, &release, there};
    if (used + n > limit)
      TORCH_CHECK_WITH(OutOfMemoryError, false, "second device: out of memory; asked for ", n, " bytes beside ", used.load());
    auto* start = static_cast<char*>(std::aligned_alloc(64, (n + head + 63) / 64 * 64));
    *reinterpret_cast<size_t*>(start) = n;
    used += n;
    if (used > peak) peak = used.load();
    return {start + head, start + head, &release, there};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* d, const void* s, size_t n) const override { default_copy_data(d, s, n); }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kind; }
  c10::Device exchangeDevice(c10::Device) const override { return there; }
  c10::Device getDevice() const override { return there; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, there); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, there); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, there); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, there); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

// A generator of the CPU that says it is the device's, but for the time of a fallback.
struct Random final : at::CPUGeneratorImpl {
  Random() { device_ = there; }
  void be(c10::Device device) { device_ = device; }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Random>(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    auto grown = memory.allocate(size);
    const size_t kept = std::min(size, storage.nbytes());
    if (kept) std::memcpy(grown.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

// The same memory, as a tensor of the CPU.
at::Tensor here(const at::Tensor& t) {
  if (!t.device().is_privateuseone()) return t;
  auto storage = t.storage();
  auto alias = at::from_blob(const_cast<void*>(storage.data()), {static_cast<int64_t>(storage.nbytes())},
                             at::TensorOptions().dtype(at::kByte));
  auto typed = at::empty({0}, at::TensorOptions().dtype(t.dtype()));
  typed.set_(alias.storage(), t.storage_offset(), t.sizes(), t.strides());
  if (t.is_conj()) typed._set_conj(true);
  if (t.is_neg()) typed._set_neg(true);
  return typed;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  at::NoGradGuard none;
  here(dst).copy_(here(self));
  return dst;
}
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}
at::Scalar item(const at::Tensor& self) { return here(self).item(); }

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}
const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& other) { return at::native::set_tensor_(self, other); }
at::Tensor& set_storage(at::Tensor& self, at::Storage s) {
  int64_t n = s.nbytes() / self.dtype().itemsize();
  return at::native::set_storage_cpu_(self, s, 0, {n}, {});
}
at::Tensor& set_storage_offset(at::Tensor& self, at::Storage s, int64_t o, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, s, o, size, stride);
}
// Attention by its formula: the fused kernels are of other devices.
int64_t math(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool,
             std::optional<double>, bool) {
  return 0;
}

// Convolutions ask for a kernel of their own.
at::Tensor up(const at::Tensor& t) { return t.defined() ? t.to(there) : t; }
void check_one(const at::Tensor& t) {
  TORCH_CHECK(!t.defined() || !t.device().is_cpu(), "convolution: expected all tensors to be on the same device, found npu:0 and cpu");
}
at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, c10::SymIntArrayRef stride,
                    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef out,
                    c10::SymInt groups) {
  check_one(x); check_one(w); if (b) check_one(*b);
  std::optional<at::Tensor> bias; if (b && b->defined()) bias = here(*b);
  return up(at::convolution_symint(here(x), here(w), bias, stride, padding, dilation, transposed, out, groups));
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_back(
    const at::Tensor& g, const at::Tensor& x, const at::Tensor& w, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef out, c10::SymInt groups, std::array<bool, 3> mask) {
  auto [a, b, c] = at::convolution_backward_symint(here(g), here(x), here(w), c10::SymIntArrayRef(std::vector<c10::SymInt>{w.sym_size(0)}),
                                                   stride, padding, dilation, transposed, out, groups, mask);
  return {up(a), up(b), up(c)};
}

// A number of the CPU may stand beside tensors of any device, and so may indices.
void check(const c10::OperatorHandle& op, const at::Tensor& t) {
  if (t.defined() && t.device().is_cpu() && t.dim() > 0)
    TORCH_CHECK(false, op.schema().name(), ": expected all tensors to be on the same device, found npu:0 and cpu (",
                t.sizes(), " ", t.dtype(), ")");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  const size_t n = op.schema().arguments().size();
  auto given = torch::jit::last(*stack, n);
  const bool indexes = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
  for (size_t i = 0; i < n; i++) {
    const auto& value = given[i];
    if (value.isTensor()) check(op, value.toTensor());
    else if (value.isTensorList()) for (const auto& t : value.toTensorVector()) check(op, t);
    else if (value.isOptionalTensorList() && !indexes)
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorList()) if (t) check(op, *t);
  }
  c10::intrusive_ptr<c10::GeneratorImpl> random;
  for (const auto& value : given)
    if (value.isGenerator() && value.toGenerator().device() == there) random = value.toGenerator().getIntrusivePtr();
  auto* ours = static_cast<Random*>(random.get());
  if (ours) ours->be(at::kCPU);
  at::native::cpu_fallback(op, stack);
  if (ours) ours->be(there);
}
}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
namespace at::native { REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &math); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("convolution_overrideable", &convolve);
  m.impl("convolution_backward_overrideable", &convolve_back);
  m.impl("resize_", &resize);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("_fused_sdp_choice", &math);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(kind, &memory);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.def("used", [] { return used.load(); });
  m.def("peak", [] { return peak.load(); });
  m.def("reset_peak", [] { peak = used.load(); });
  m.def("limit", [] { return limit.load(); });
  m.def("set_limit", [](size_t n) { limit = n; });
}
