// Bindings of the similarity's parameters, included by both extension modules.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "params.h"

namespace fovblur {

using EmbeddingsArgument = std::tuple<uintptr_t, int64_t, int64_t>;  // address, row stride, column stride
using GateArgument = std::tuple<uintptr_t, int64_t>;                 // address or 0, stride

inline Embeddings make_embeddings(const EmbeddingsArgument& argument) {
  return {reinterpret_cast<const void*>(std::get<0>(argument)), std::get<1>(argument), std::get<2>(argument)};
}

inline Gate make_gate(const GateArgument& argument) {
  return {reinterpret_cast<const void*>(std::get<0>(argument)), std::get<1>(argument)};
}

inline SimilarityParams make_similarity_params(const std::array<int64_t, 4>& shape, int dtype,
                                               const EmbeddingsArgument& brain_image, const EmbeddingsArgument& image,
                                               const EmbeddingsArgument& brain_text, const EmbeddingsArgument& text,
                                               const GateArgument& row_gate, const GateArgument& column_gate,
                                               bool allow_tf32) {
  return {shape[0],
          shape[1],
          shape[2],
          shape[3],
          DType(dtype),
          make_embeddings(brain_image),
          make_embeddings(image),
          make_embeddings(brain_text),
          make_embeddings(text),
          make_gate(row_gate),
          make_gate(column_gate),
          allow_tf32};
}

inline TopK make_topk(int64_t k, uintptr_t values, uintptr_t indices) {
  return {k, reinterpret_cast<void*>(values), reinterpret_cast<int64_t*>(indices)};
}

inline void bind_similarity(pybind11::module_& m) {
  using namespace pybind11;
  class_<SimilarityParams>(m, "SimilarityParams", module_local())
      .def(init(&make_similarity_params), kw_only(), arg("shape"), arg("dtype"), arg("brain_image"), arg("image"),
           arg("brain_text"), arg("text"), arg("row_gate"), arg("column_gate"), arg("allow_tf32"));
  class_<TopK>(m, "TopK", module_local()).def(init(&make_topk), arg("k"), arg("values"), arg("indices"));
}

}  // namespace fovblur
