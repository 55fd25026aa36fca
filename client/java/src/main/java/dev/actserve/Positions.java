package dev.actserve;

import dev.actserve.v1.AllPositions;
import dev.actserve.v1.GeneratedPositions;
import dev.actserve.v1.LastPosition;
import dev.actserve.v1.PositionList;
import dev.actserve.v1.PositionRange;
import dev.actserve.v1.PositionSelector;
import dev.actserve.v1.PromptPositions;
import dev.actserve.v1.TextPositions;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Token positions, as people write them. */
public final class Positions {
  private static final String TEXT = "text:";

  // ASCII digits without a leading zero, as of layers.
  private static final String NUMBER = "(?:0|-?[1-9][0-9]*)";
  private static final Pattern LIST = Pattern.compile(NUMBER + "(?:," + NUMBER + ")*");
  private static final Pattern SPAN = Pattern.compile("(" + NUMBER + ")?:(" + NUMBER + ")?");

  private Positions() {}

  /**
   * The positions of a text: {@code all}, {@code last}, {@code prompt} or {@code generated}; {@code
   * 3}, {@code -1} or {@code 0,3,-1}; {@code 2:8}, {@code :-1} or {@code 2:}, a range without its
   * end; or {@code text:France}, every token of that text. Negative positions count from the end of
   * the prompt.
   *
   * @throws ActserveException {@code POSITION_OUT_OF_RANGE} for any other text
   */
  public static PositionSelector parse(String text) {
    PositionSelector.Builder selector = PositionSelector.newBuilder();
    switch (text) {
      case "all":
        return selector.setAll(AllPositions.getDefaultInstance()).build();
      case "last":
        return selector.setLast(LastPosition.getDefaultInstance()).build();
      case "prompt":
        return selector.setPrompt(PromptPositions.getDefaultInstance()).build();
      case "generated":
        return selector.setGenerated(GeneratedPositions.getDefaultInstance()).build();
      default:
        break;
    }
    if (text.startsWith(TEXT) && text.length() > TEXT.length()) {
      return selector
          .setText(TextPositions.newBuilder().setText(text.substring(TEXT.length())))
          .build();
    }
    try {
      Matcher span = SPAN.matcher(text);
      if (span.matches()) {
        PositionRange.Builder range = PositionRange.newBuilder();
        if (span.group(1) != null) {
          range.setStart(Integer.parseInt(span.group(1)));
        }
        if (span.group(2) != null) {
          range.setEnd(Integer.parseInt(span.group(2)));
        }
        return selector.setSpan(range).build();
      }
      if (LIST.matcher(text).matches()) {
        PositionList.Builder list = PositionList.newBuilder();
        for (String position : text.split(",")) {
          list.addPositions(Integer.parseInt(position));
        }
        return selector.setList(list).build();
      }
    } catch (NumberFormatException tooLarge) {
      // Refused below, as all else.
    }
    throw ActserveException.invalid(
        "POSITION_OUT_OF_RANGE",
        "",
        "\"%s\" are no positions; write all, last, prompt, generated, numbers of 32 bits as in"
            + " 0,3,-1, a range as in 2:8, or text:France",
        text);
  }
}
