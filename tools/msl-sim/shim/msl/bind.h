// Used by the translated source: trampolines that bind the parameters of a kernel, threadgroup variables, and
// constants.
#pragma once

namespace msl {

// The type of the I-th parameter of a kernel. The translator knows only the order and the attributes; C++ knows the
// types.
template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  template <int I, class H, class... T>
  struct Nth {
    typedef typename Nth<I - 1, T...>::type type;
  };
  template <class H, class... T>
  struct Nth<0, H, T...> {
    typedef H type;
  };
  template <int I>
  using Param = typename Nth<I, A...>::type;
};

template <class A>
struct Memory;
template <class T>
struct Memory<T*> {
  static T* bind(void* p) { return (T*)p; }
};
template <class T>
struct Memory<T&> {
  static T& bind(void* p) { return *(T*)p; }
};

template <class A>
struct BuiltIn {
  static A bind(uint32_t v) { return A(v); }
  static A bind(U3 v) { return A(v.x); }
};
template <class E>
struct BuiltIn<metal::vec<E, 2>> {
  static metal::vec<E, 2> bind(U3 v) { return {E(v.x), E(v.y)}; }
};
template <class E>
struct BuiltIn<metal::vec<E, 3>> {
  static metal::vec<E, 3> bind(U3 v) { return {E(v.x), E(v.y), E(v.z)}; }
};
template <class A>
struct BuiltIn<const A> : BuiltIn<A> {};

struct RegisterKernel {
  RegisterKernel(const char* name, KernelFn fn) { msl_rt_register_kernel(name, fn); }
};
struct RegisterConstant {
  RegisterConstant(int id, void* storage, size_t size, bool* defined) {
    msl_rt_register_constant(id, storage, size, defined);
  }
};

}  // namespace msl

// threadgroup float a[32], b; becomes a struct in the group's arena, with a reference for every name.
#define MSL_TG_BEGIN(k) struct msl_tg_##k {
#define MSL_TG_END(k)                \
  }                                  \
  ;                                  \
  static const char msl_tg_key_##k = 0; \
  auto& msl_tg_value_##k =           \
      *(msl_tg_##k*)msl_rt_threadgroup_slot(&msl_tg_key_##k, sizeof(msl_tg_##k), alignof(msl_tg_##k));
#define MSL_TG_NAME(k, name) auto& name = msl_tg_value_##k.name;

#define MSL_FUNCTION_CONSTANT(id, T, name) \
  static T name;                           \
  static bool name##_msl_defined;          \
  static ::msl::RegisterConstant name##_msl_register(id, (void*)&name, sizeof(name), &name##_msl_defined);
#define is_function_constant_defined(name) name##_msl_defined

#define MSL_KERNEL static
#define MSL_TRAMPOLINE_BEGIN(id) static void msl_trampoline_##id(const ::msl::Ctx* msl_ctx) {
#define MSL_TRAMPOLINE_END(id, name) \
  }                                  \
  static ::msl::RegisterKernel msl_register_##id(name, &msl_trampoline_##id);
#define MSL_BUFFER(F, i, n) ::msl::Memory<typename F::template Param<i>>::bind(msl_ctx->buffers[n])
#define MSL_THREADGROUP_POINTER(F, i, n) ::msl::Memory<typename F::template Param<i>>::bind(msl_ctx->tgmem[n])
#define MSL_BUILT_IN(F, i, name) ::msl::BuiltIn<typename F::template Param<i>>::bind(msl_ctx->name)

#define device
#define constant
#define threadgroup
#define thread
