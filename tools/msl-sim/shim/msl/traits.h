// The part of <metal_type_traits> and <metal_limits> that kernels use.
#pragma once

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;

template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

template <class T>
struct remove_const {
  typedef T type;
};
template <class T>
struct remove_const<const T> {
  typedef T type;
};
template <class T>
struct remove_volatile {
  typedef T type;
};
template <class T>
struct remove_volatile<volatile T> {
  typedef T type;
};
template <class T>
struct remove_cv {
  typedef typename remove_const<typename remove_volatile<T>::type>::type type;
};
template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T&> {
  typedef T type;
};
template <class T>
struct remove_reference<T&&> {
  typedef T type;
};
template <class T>
struct remove_pointer {
  typedef T type;
};
template <class T>
struct remove_pointer<T*> {
  typedef T type;
};
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
using remove_addrspace_t = T;

template <class T>
struct is_integral : bool_constant<msl::Arithmetic<T>::kind == 1> {};
template <class T>
struct is_floating_point : bool_constant<msl::Arithmetic<T>::kind == 2> {};
template <>
struct is_floating_point<bfloat> : true_type {};
template <class T>
constexpr bool is_integral_v = is_integral<T>::value;
template <class T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
struct is_arithmetic : bool_constant<is_integral_v<T> || is_floating_point_v<T>> {};
template <class T>
constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
struct is_signed : bool_constant<(T(-1) < T(0))> {};
template <class T>
constexpr bool is_signed_v = is_signed<T>::value;
template <class T>
struct is_unsigned : bool_constant<is_integral_v<T> && !(T(-1) < T(0))> {};
template <class T>
constexpr bool is_unsigned_v = is_unsigned<T>::value;

template <class...>
struct disjunction : false_type {};
template <class A, class... B>
struct disjunction<A, B...> : bool_constant<A::value || disjunction<B...>::value> {};
template <class... A>
struct _disjunction : disjunction<A...> {};
template <class...>
struct conjunction : true_type {};
template <class A, class... B>
struct conjunction<A, B...> : bool_constant<A::value && conjunction<B...>::value> {};

template <class T>
struct is_pointer : false_type {};
template <class T>
struct is_pointer<T*> : true_type {};
template <class T>
constexpr bool is_pointer_v = is_pointer<T>::value;

template <class A, class B>
struct is_convertible {
  struct No {
    char c[2];
  };
  static char test(B);
  static No test(...);
  static A make();
  static constexpr bool value = sizeof(test(make())) == 1;
};
template <class A, class B>
constexpr bool is_convertible_v = is_convertible<A, B>::value;
template <class T>
T&& declval() noexcept;

// What MLX's steel headers define in this namespace, once per address space.
template <class T>
struct is_empty : bool_constant<__is_empty(T)> {};
template <class T>
constexpr bool is_empty_v = __is_empty(T);
template <class... T>
struct make_void {
  typedef void type;
};
template <class... T>
using void_t = typename make_void<T...>::type;
template <class T>
struct is_static : bool_constant<__is_empty(remove_cv_t<T>)> {};
template <class T>
struct pointer_element {};
template <class T>
struct pointer_element<T*> {
  typedef remove_cv_t<T> type;
};
template <class T>
using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;

template <class T>
struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, LO, HI, DIGITS)                                       \
  template <>                                                                       \
  struct numeric_limits<T> {                                                        \
    static constexpr bool is_specialized = true, is_integer = true;                 \
    static constexpr bool is_signed = (LO) != 0;                                    \
    static constexpr int digits = DIGITS;                                           \
    static constexpr T min() { return LO; }                                         \
    static constexpr T max() { return HI; }                                         \
    static constexpr T lowest() { return LO; }                                      \
    static constexpr T infinity() { return 0; }                                     \
  };
MSL_INTEGER_LIMITS(bool, false, true, 1)
MSL_INTEGER_LIMITS(char, -128, 127, 7)
MSL_INTEGER_LIMITS(signed char, -128, 127, 7)
MSL_INTEGER_LIMITS(unsigned char, 0, 255, 8)
MSL_INTEGER_LIMITS(short, -32768, 32767, 15)
MSL_INTEGER_LIMITS(unsigned short, 0, 65535, 16)
MSL_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647, 31)
MSL_INTEGER_LIMITS(unsigned, 0, 4294967295u, 32)
MSL_INTEGER_LIMITS(long, -9223372036854775807l - 1, 9223372036854775807l, 63)
MSL_INTEGER_LIMITS(unsigned long, 0, 18446744073709551615ul, 64)
#undef MSL_INTEGER_LIMITS

#define MSL_FLOAT_LIMITS(T, MIN, MAX, EPSILON, DIGITS)                              \
  template <>                                                                       \
  struct numeric_limits<T> {                                                        \
    static constexpr bool is_specialized = true, is_integer = false, is_signed = true; \
    static constexpr int digits = DIGITS;                                           \
    static constexpr T min() { return T(MIN); }                                     \
    static constexpr T max() { return T(MAX); }                                     \
    static constexpr T lowest() { return T(-(MAX)); }                               \
    static constexpr T infinity() { return T(INFINITY); }                           \
    static constexpr T quiet_NaN() { return T(NAN); }                               \
    static constexpr T epsilon() { return T(EPSILON); }                             \
  };
MSL_FLOAT_LIMITS(float, 1.175494351e-38f, 3.402823466e+38f, 1.1920929e-07f, 24)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 9.765625e-04f, 11)
MSL_FLOAT_LIMITS(bfloat, 1.175494351e-38f, 3.38953139e+38f, 7.8125e-03f, 8)
#undef MSL_FLOAT_LIMITS

}  // namespace metal
