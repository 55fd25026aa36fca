import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import dev.actserve.ActserveClient;
import dev.actserve.LogitEffect;
import dev.actserve.Sites;
import dev.actserve.v1.BeginUploadRequest;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.DictionaryKind;
import dev.actserve.v1.DictionaryMatrix;
import dev.actserve.v1.ElementType;
import dev.actserve.v1.MatrixRole;
import dev.actserve.v1.ReluActivation;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;

/** What is done with dictionaries. */
final class Dictionaries {
  private Dictionaries() {}

  /** Uploads a sparse autoencoder. */
  static JsonObject upload(ActserveClient client, JsonObject question) {
    Dictionary.Builder dictionary =
        Dictionary.newBuilder()
            .setKind(DictionaryKind.DICTIONARY_KIND_SPARSE_AUTOENCODER)
            .setSite(Sites.parse(question.get("site").getAsString()))
            .setRelu(ReluActivation.getDefaultInstance());
    BeginUploadRequest.Builder request =
        BeginUploadRequest.newBuilder()
            .setModel("models/" + question.getAsJsonObject("client").get("model").getAsString())
            .setDictionaryId(question.get("name").getAsString());
    List<ByteString> contents = new ArrayList<>();
    for (JsonElement each : question.getAsJsonArray("matrices")) {
      JsonObject matrix = each.getAsJsonObject();
      DictionaryMatrix.Builder described =
          DictionaryMatrix.newBuilder()
              .setRole(MatrixRole.valueOf("MATRIX_ROLE_" + matrix.get("role").getAsString()))
              .setElementType(ElementType.ELEMENT_TYPE_F32);
      matrix.getAsJsonArray("shape").forEach(extent -> described.addShape(extent.getAsInt()));
      dictionary.setFeatures(described.getShape(0));
      request.addMatrices(described);
      contents.add(ByteString.copyFrom(HexFormat.of().parseHex(matrix.get("data").getAsString())));
    }
    request.setDictionary(dictionary);
    JsonObject result = new JsonObject();
    result.addProperty("name", client.uploadDictionary(request.build(), contents).getName());
    return result;
  }

  static JsonObject effects(ActserveClient client, JsonObject question) {
    int[] features =
        question.getAsJsonArray("features").asList().stream()
            .mapToInt(JsonElement::getAsInt)
            .toArray();
    JsonArray effects = new JsonArray();
    for (LogitEffect effect :
        client.logitEffects(
            question.get("dictionary").getAsString(), features, question.get("k").getAsInt())) {
      JsonObject told = new JsonObject();
      told.addProperty("feature", effect.feature());
      told.add("top", tokens(effect.top()));
      told.add("bottom", tokens(effect.bottom()));
      effects.add(told);
    }
    JsonObject result = new JsonObject();
    result.add("effects", effects);
    return result;
  }

  private static JsonArray tokens(List<LogitEffect.Token> tokens) {
    JsonArray told = new JsonArray();
    for (LogitEffect.Token token : tokens) {
      JsonObject each = Driver.json(new int[] {1}, token.effect());
      each.addProperty("id", token.id());
      each.addProperty("text", token.text());
      told.add(each);
    }
    return told;
  }
}
